"""Masked batches to a trained model.

    masked batches -> updates -> checkpoints -> a model that fills masks

Read `step` first: it is one optimizer update. `objective` is the loss and the
masked-only head, `optim` the optimizers and the schedule, `evaluate` the
perplexity, `loop` the cadence, `checkpoint` what is written and resumed,
`fill_mask` and `scoring` what the model is then used for, both by way of
`predictor`. `model_card` and `publish` share it. Of the data half only the batch type is known here.
"""

import lazy_loader

# The names are those of __init__.pyi. Each is imported when it is first used: torch and transformers take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
