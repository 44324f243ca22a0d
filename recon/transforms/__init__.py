"""Rewriting a network so that it computes the same and loses less when it is rounded."""
