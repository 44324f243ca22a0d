"""ONNX files of integer plans: Q/DQ that runtimes turn into integer kernels, weights at their bit-width."""
