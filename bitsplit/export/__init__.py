"""What a quantized network becomes outside its process: packed files, ONNX, TF-Lite, integers, a page."""
