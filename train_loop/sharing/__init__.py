"""A trained model for others.

`model_card` describes it, in the words of `card_names`; `hub` pushes it. `export_onnx`
and `export_keras` write it for other libraries.
"""
