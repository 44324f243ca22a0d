"""The captured network: its graph, its layers by kind, and the units that are reconstructed."""
