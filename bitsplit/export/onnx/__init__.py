"""ONNX files with integer weights."""
