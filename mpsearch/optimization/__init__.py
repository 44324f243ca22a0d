"""The bit assignment as an integer problem, its Pareto front, and exact answers beside it."""
