"""Masked batches to a trained model.

    masked batches -> updates -> checkpoints -> a model that fills masks

Read `step` first: it is one optimizer update. The core stands at the root; `objectives`, `optimizers`, `speed`,
`watching`, `inference` and `sharing` are its rooms. Of the data half only `data.batch` is known here.
"""

import importlib
from typing import Any

_HOMES = {
    "train_loop.checkpoint": "CheckpointError TrainState",
    "train_loop.config": "ModelConfig TrainConfig",
    "train_loop.inference.fill_mask": "FillMask",
    "train_loop.inference.scoring": "TextScore TextScorer pseudo_perplexity",
    "train_loop.loop": "train",
    "train_loop.model": "open_model",
    "train_loop.objective": "EvalMetrics Objective freeze_unused",
    "train_loop.objectives.hf_loss": "MaskedLMLoss",
    "train_loop.objectives.checks": "check_document_attention gather_in_last_layer",
    "train_loop.objectives.masked_lm": "MaskedLMObjective unigram_perplexity",
    "train_loop.objectives.masked_logits": "MaskedLogits",
    "train_loop.optim": "build_schedule",
    "train_loop.optimizers.groups": "build_optimizers",
    "train_loop.plan": "BatchPlan plan_batches",
    "train_loop.run": "Run Stopped",
    "train_loop.sharing.hub": "BackgroundPush PublishError Repository open_repository push_model",
    "train_loop.sharing.model_card": "build_card write_card",
    "train_loop.step": "StepMetrics train_step",
    "train_loop.watching.metrics": "NonFiniteError",
    "train_loop.watching.trackers": "open_trackers",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: torch and transformers take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
