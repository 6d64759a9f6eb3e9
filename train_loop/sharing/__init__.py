"""Shares a trained model.

`model_card` describes it, with the names of `card_names`; `hub` pushes it. `export_onnx`
and `export_keras` write it for other libraries.
"""
