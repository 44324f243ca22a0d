"""Tasks: what the outputs of a network mean, and the metrics it is judged by."""
