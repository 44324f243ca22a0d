"""An integer plan as a standard exported program of torch with quantize and dequantize operations."""
