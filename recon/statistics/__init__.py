"""What calibration samples say: moments of layer inputs, the Fisher information, activity of outputs."""
