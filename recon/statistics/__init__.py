"""What calibration samples say: moments of layer inputs, the Fisher information, slopes of activation functions."""
