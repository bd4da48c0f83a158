"""The steps of a quantization that `ptq.quantize` puts in order."""
