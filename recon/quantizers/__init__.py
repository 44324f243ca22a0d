"""Quantization grids of weights and activations, and the modules that learn them."""
