"""Where and how tensors are computed and kept."""
