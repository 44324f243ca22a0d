"""What the outputs of a network mean: the distributions they describe, their Fisher information and divergence."""
