"""Masked batches to a trained model.

    masked batches -> updates -> checkpoints -> a model that fills masks

Read `step` first: it is one optimizer update. `objective` is the loss and the
masked-only head, `optim` the optimizers and the schedule, `evaluate` the
perplexity, `loop` the cadence, `checkpoint` what is written and resumed,
`fill_mask` what the model is then used for. Of the data half only the batch
type is known here.
"""

from train_loop.checkpoint import CheckpointError, TrainState
from train_loop.config import BatchPlan, ModelConfig, TrainConfig, plan_batches
from train_loop.evaluate import EvalMetrics, evaluate, unigram_perplexity
from train_loop.fill_mask import FillMask
from train_loop.loop import Run, Stopped, train
from train_loop.model import open_model
from train_loop.objective import MaskedLMObjective, check_document_attention, freeze_unused, gather_in_last_layer
from train_loop.optim import build_optimizers, build_schedule
from train_loop.step import NonFiniteError, StepMetrics, train_step

__all__ = [
    "BatchPlan",
    "CheckpointError",
    "EvalMetrics",
    "FillMask",
    "MaskedLMObjective",
    "ModelConfig",
    "NonFiniteError",
    "Run",
    "StepMetrics",
    "Stopped",
    "TrainConfig",
    "TrainState",
    "build_optimizers",
    "build_schedule",
    "check_document_attention",
    "evaluate",
    "freeze_unused",
    "gather_in_last_layer",
    "open_model",
    "plan_batches",
    "train",
    "train_step",
    "unigram_perplexity",
]
