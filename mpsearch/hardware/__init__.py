"""Measuring what layers cost on this machine."""
