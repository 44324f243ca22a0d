"""The sensitivity cache: what each choice of bits costs in expected KL divergence."""
