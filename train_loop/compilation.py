"""torch.compile, layer by layer."""

from torch import nn

from train_loop.objective import MaskedLMObjective


def compile_layers(objective: MaskedLMObjective) -> int:
    """Compile the encoder's layers in place, each by itself, and return how many.

    They are alike, so one compilation serves all of them, and each sees one
    static shape, ``[B, L, D]``. What depends on the number of masked tokens, which
    is another in each batch, stays as it is: the last layer, where it gathers them,
    and the head. So nothing is compiled again from step to step.
    """
    lists = (module for module in objective.model.base_model.modules() if isinstance(module, nn.ModuleList))
    layers = max(lists, key=len, default=nn.ModuleList())
    gathers = objective.model.get_submodule(objective.last_layer) if objective.last_layer else None
    to_compile = [layer for layer in layers if all(module is not gathers for module in layer.modules())]
    for layer in to_compile:
        layer.compile()
    return len(to_compile)
