"""The run folder on disk and the keys of what is in it."""
