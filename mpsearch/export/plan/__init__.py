"""The integer plan: what a low-bit network is to a runtime that computes with integers, and its golden executor."""
