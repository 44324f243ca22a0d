"""Plain C99 of an integer plan: weights at their own width, kernels without allocation, a self-test."""
