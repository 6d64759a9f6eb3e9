"""torch.compile, layer by layer."""

from functools import partial
from typing import Any

import torch
from torch import nn

from train_loop.model import encoder_layers
from train_loop.objective import Objective


def compile_layers(objective: Objective) -> int:
    """Compile the encoder's layers in place, each by itself, and return how many.

    The layers are alike, so one compilation serves all of them, with one static shape, ``[B, L, D]``. The number of
    masked tokens differs from batch to batch, so what depends on it is not compiled: the head, and the last layer where
    it gathers them. So no step compiles anything again.

    Only training uses the compiled layers. Evaluation and probes have other shapes, and compiling for these would take
    longer than it saves. Call this after trials in training mode, such as that of the micro-batch that fits.
    """
    torch.compiler.reset()  # of an earlier run in this process: its shapes would make this one's dynamic
    layers = encoder_layers(objective.model)
    to_compile = [layer for layer in layers if all(module is not objective.last_layer for module in layer.modules())]
    for layer in to_compile:
        layer.compile()
        layer._compiled_call_impl = partial(_in_training, layer, layer._compiled_call_impl)
    return len(to_compile)


def _in_training(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)
