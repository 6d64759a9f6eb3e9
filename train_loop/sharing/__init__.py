"""Shares a trained model.

`model_card` describes it, and `hub` pushes it. `export_onnx` and `export_keras` write it for other libraries.
"""
