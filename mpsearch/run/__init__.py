"""A run: its steps, the keys of what they write, and reading a run folder back."""
