"""How a run is spread over its processes: by DDP, where each holds the whole objective, or by FSDP2, in shards.

Nothing else knows where a parameter lives. The names are those of a checkpoint: what belongs to the saved model is
named as in it, other weights of the objective as ``objective.name``, and tensors of the optimizers ``parameter/slot``.

Under shards every forward and backward is one of all processes: all must make as many (`even_out`).
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from data.batch import MaskedBatch
from train_loop.config import TrainConfig
from train_loop.model import encoder_layers
from train_loop.objective import Objective
from train_loop.optim import BuildOptimizers, WeightAverage, all_optimizers


def prepare(
    accelerator: Accelerator, objective: Objective, build_optimizers: BuildOptimizers, config: TrainConfig
) -> tuple[nn.Module, list[AcceleratedOptimizer]]:
    """The objective on the device, computing at the run's precision, sharded or wrapped in DDP; and its optimizers.

    Raises ValueError if the objective, or this number of processes, cannot be sharded as the settings say.
    """
    if config.shard and distributed.is_initialized():
        # Nobody writes to that tensor.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        _shard(objective, accelerator, config.replicas)
        prepared = accelerator.prepare_model(objective, evaluation_mode=True)  # the precision, and no DDP
    else:
        # broadcast_buffers is the only name that Accelerate has for it.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        prepared = accelerator.prepare_model(objective)
    optimizers = all_optimizers(build_optimizers, objective, config)
    return prepared, [accelerator.prepare_optimizer(one) for one in optimizers]


def _shard(objective: Objective, accelerator: Accelerator, replicas: int) -> None:
    """Shard each layer of the encoder, then the rest of the model, over the processes of each replica.

    The root is the model, not the objective: its forward is what `MaskedLogits` calls. Weights that are tied are in
    the root's group, and stay tied.
    """
    number = accelerator.num_processes
    if number % replicas:
        raise ValueError(
            f"replicas={replicas}: {number} processes cannot be divided into {replicas} equal groups; "
            "use a divisor of their number"
        )
    inside = {id(p) for p in objective.model.parameters()}
    if own := [name for name, p in objective.named_parameters() if id(p) not in inside]:
        raise ValueError(
            f"shard=true shards the model, and the objective has weights of its own ({', '.join(own)}), which nobody "
            "would synchronise: use --shard false"
        )
    device = accelerator.device.type
    mesh = init_device_mesh(device, (replicas, number // replicas), mesh_dim_names=("replica", "shard"))
    mesh = mesh if replicas > 1 else mesh["shard"]
    for layer in encoder_layers(objective.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(objective.model, mesh=mesh, reshard_after_forward=True)  # else a save right after an evaluation fails


def unwrapped(objective: nn.Module) -> Objective:
    """The objective without DDP around it. Accelerate's ``unwrap_model`` takes 0.3 ms, and each update asks."""
    return cast(Objective, objective.module if isinstance(objective, DistributedDataParallel) else objective)


def is_sharded(objective: Objective) -> bool:
    """Whether each process holds a part of the model's weights."""
    return isinstance(objective.model, FSDPModule)


def even_out(batches: list[MaskedBatch], number: int, objective: Objective) -> list[MaskedBatch]:
    """Under shards, the batches and blank ones after them, ``number`` in all; else the batches."""
    if not is_sharded(objective):
        return batches
    device = next(objective.parameters()).device
    return batches + [MaskedBatch.blank(device) for _ in range(number - len(batches))]


def gradient_sync(accelerator: Accelerator, objective: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Within it a backward adds to the gradients; the last one of an update also averages them over the processes."""
    if isinstance(model := unwrapped(objective).model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        return nullcontext()
    return nullcontext() if is_last else accelerator.no_sync(objective)


def clip_grad_norm(accelerator: Accelerator, objective: nn.Module, max_norm: float) -> Tensor:
    """Clip the gradient to a norm, or not at all where that is 0; return the norm that it had."""
    return _whole(accelerator.clip_grad_norm_(objective.parameters(), max_norm or torch.inf))


def _whole(tensor: Tensor) -> Tensor:
    """The tensor; of a shard, the whole, for which all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(
    objective: Objective, optimizers: Sequence[Optimizer], *, is_wanted: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whole tensors by name: the model's weights and buffers, where they are, and host copies of all others.

    All processes call this; where it is not wanted, both are empty. Shards are gathered one tensor at a time, and
    the weights of a sharded model are host copies too.
    """
    if not is_wanted and not is_sharded(objective):
        return {}, {}
    names = _parameter_names(objective)
    own = {_name(name): value for name, value in objective.state_dict().items() if not name.startswith("model.")}
    others = own | {
        f"{names[id(p)]}/{slot}": value
        for optimizer in optimizers
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }

    def copy(tensor: Tensor) -> Tensor | None:
        whole = _whole(tensor.detach())  # given up at the return: one at a time is held
        return whole.to("cpu", copy=True).contiguous() if is_wanted else None

    def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: taken for name, tensor in tensors.items() if (taken := copy(tensor)) is not None}

    weights = objective.model.state_dict()
    return copies(weights) if is_sharded(objective) else weights, copies(others)


def load_full_state(
    objective: Objective, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], *, is_whole: bool = False
) -> None:
    """Put back what `full_state` gave; the weights, or some of them, may be missing.

    With ``is_whole`` it comes from another objective, and ValueError is raised unless its weights are just these.
    """
    names = {_name(name): name for name in objective.state_dict()}
    like = {_name(name): p for name, p in objective.named_parameters(remove_duplicate=False)}
    weights = {names.get(name, name): _share_of(like.get(name), t) for name, t in tensors.items() if "/" not in name}
    try:
        objective.load_state_dict(weights, strict=is_whole)
    except RuntimeError as error:
        wrong = " ".join(str(error).split()[5:])[:300]
        raise ValueError(f"model_config may change no shape, as rope_parameters does not: {wrong}") from error
    names_by_id = _parameter_names(objective)
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, _, slot in (key.rpartition("/") for key in tensors if "/" in key):
        # A copy, out of a file's memory map: see load_model.
        by_parameter.setdefault(name, {})[slot] = _share_of(like[name], tensors[f"{name}/{slot}"].clone())
    for optimizer in optimizers:
        parameters = [names_by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]
        averages = isinstance(getattr(optimizer, "optimizer", optimizer), WeightAverage)
        of_all = (by_parameter.get(name, {}).items() for name in parameters)
        slots = [{s: t for s, t in one if s.startswith(WeightAverage.SLOT) == averages} for one in of_all]
        state = {i: one for i, one in enumerate(slots) if one}  # none where the average begins now
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _share_of(parameter: Tensor | None, whole: Tensor) -> Tensor:
    """This process's share of a tensor that is sharded as the parameter is; else the tensor."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _parameter_names(objective: Objective) -> dict[int, str]:
    return {id(p): _name(name) for name, p in objective.named_parameters()}


def _name(name: str) -> str:
    return name.removeprefix("model.") if name.startswith("model.") else f"objective.{name}"
