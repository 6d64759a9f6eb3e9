"""Shares a trained model.

`model_card` describes it, and `hub` pushes it. `export_onnx` writes it for other libraries.
"""
