"""Finishing a configuration: reconstruction, the packed file, and what it measures."""
