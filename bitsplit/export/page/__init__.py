"""The page about a quantized network."""
