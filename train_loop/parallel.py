"""How a run is spread over its processes: each holds the whole objective, and DDP averages the gradients.

Nothing else knows where a parameter lives. The names are those of a checkpoint: what belongs to the saved model is
named as in it, other weights of the objective as ``objective.name``, and tensors of the optimizers ``parameter/slot``.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from train_loop.config import TrainConfig
from train_loop.objective import Objective
from train_loop.optim import BuildOptimizers

_OWN = "objective."


def prepare(
    accelerator: Accelerator, objective: Objective, build_optimizers: BuildOptimizers, config: TrainConfig
) -> tuple[nn.Module, list[AcceleratedOptimizer]]:
    """The objective on the device, computing at the run's precision and wrapped in DDP; and its optimizers."""
    # broadcast_buffers is the only name that Accelerate has for it.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    prepared, *optimizers = accelerator.prepare(objective, *build_optimizers(objective, config))
    return prepared, optimizers


def unwrapped(objective: nn.Module) -> Objective:
    """The objective without DDP around it. Accelerate's ``unwrap_model`` takes 0.3 ms, and each update asks."""
    return cast(Objective, objective.module if isinstance(objective, DistributedDataParallel) else objective)


def gradient_sync(accelerator: Accelerator, objective: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Within it a backward adds to the gradients; the last one of an update also averages them over the processes."""
    return nullcontext() if is_last else accelerator.no_sync(objective)


def clip_grad_norm(accelerator: Accelerator, objective: nn.Module, max_norm: float) -> Tensor:
    """Clip the gradient to a norm, or not at all where that is 0; return the norm that it had."""
    return accelerator.clip_grad_norm_(objective.parameters(), max_norm or torch.inf)


def full_state(
    objective: Objective, optimizers: Sequence[Optimizer], *, is_wanted: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whole tensors by name: the model's weights and buffers, where they are, and host copies of all others.

    All processes call this; where it is not wanted, both are empty.
    """
    if not is_wanted:
        return {}, {}
    names = _parameter_names(objective)
    own = {_name(name): value for name, value in objective.state_dict().items() if not name.startswith("model.")}
    others = own | {
        f"{names[id(p)]}/{slot}": value
        for optimizer in optimizers
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in others.items()}
    return objective.model.state_dict(), copies


def load_full_state(objective: Objective, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `full_state` gave; the weights, or some of them, may be missing."""
    names = {_name(name): name for name in objective.state_dict()}
    objective.load_state_dict({names[name]: t for name, t in tensors.items() if "/" not in name}, strict=False)
    names_by_id = _parameter_names(objective)
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, _, slot in (key.rpartition("/") for key in tensors if "/" in key):
        # A copy, out of a file's memory map: see load_model.
        by_parameter.setdefault(name, {})[slot] = tensors[f"{name}/{slot}"].clone()
    for optimizer in optimizers:
        parameters = [names_by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]
        state = {i: by_parameter[name] for i, name in enumerate(parameters) if name in by_parameter}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_names(objective: Objective) -> dict[int, str]:
    return {id(p): _name(name) for name, p in objective.named_parameters()}


def _name(name: str) -> str:
    return name.removeprefix("model.") if name.startswith("model.") else f"{_OWN}{name}"
