"""torch.compile, layer by layer."""

from functools import partial
from typing import Any

from torch import nn

from train_loop.objective import Objective


def compile_layers(objective: Objective) -> int:
    """Compile the encoder's layers in place, each by itself, and return how many.

    They are alike, so one compilation serves all of them, and each sees one
    static shape, ``[B, L, D]``. What depends on the number of masked tokens, which
    is another in each batch, stays as it is: the last layer, where it gathers them,
    and the head. So nothing is compiled again from step to step.

    Only the training step is compiled: evaluation and probes have other shapes, for
    which to compile would take longer than they do. To be called after what is tried
    out in training mode, such as the micro-batch that fits.
    """
    lists = (module for module in objective.model.base_model.modules() if isinstance(module, nn.ModuleList))
    layers = max(lists, key=len, default=nn.ModuleList())
    gathers = objective.model.get_submodule(objective.last_layer) if objective.last_layer else None
    to_compile = [layer for layer in layers if all(module is not gathers for module in layer.modules())]
    for layer in to_compile:
        layer.compile()
        layer._compiled_call_impl = partial(_in_training, layer, layer._compiled_call_impl)
    return len(to_compile)


def _in_training(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)
