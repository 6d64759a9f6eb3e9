"""What fits in memory: the largest micro-batch, by trial; and DDP or shards, by counting. It changes no update."""

import bisect
import contextlib
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.optim import Optimizer

from data.batch import MaskedBatch
from train_loop.model import encoder_layers
from train_loop.objective import Objective
from train_loop.optim import WeightAverage

SHARE_OF_MEMORY = 0.9  # the rest is for what varies from step to step, and for others


def fewest_micro_batches(
    accelerator: Accelerator,
    objective: Objective,
    share: int,
    *,
    length: int,
    masked_share: float,
    has_attention_mask: bool,
    num_slots: int = 2,  # tensors that the optimizers keep for each parameter
) -> int:
    """The smallest number of micro-batches into which ``share``, the most blocks of a process in an update, can be cut.

    Each trial is a forward and a backward with the largest likely number of masked tokens, beside tensors of the size
    of the optimizer's state. All processes call this. They get the same answer, that of the process with least memory.
    No gradient is left behind. Raises ValueError if not even one block fits.
    """
    device = next(objective.parameters()).device

    def try_size(size: int) -> None:
        optimizer_state = [
            torch.empty(num_slots, *p.shape, device=device) for p in objective.parameters() if p.requires_grad
        ]
        expected = size * length * masked_share
        num_masked = min(size * length, math.ceil(expected + 4 * math.sqrt(expected)))  # four standard deviations
        batch = MaskedBatch.of_zeros(
            size, length, num_masked=num_masked, device=device, has_attention_mask=has_attention_mask
        )
        objective(batch).sum().backward()
        del optimizer_state  # held until here

    def fits(number: int) -> bool:
        size = -(-share // number)
        try:
            try_size(size)
        except (RuntimeError, MemoryError) as error:
            if size == 1:
                reason = str(error).partition("\n")[0]
                raise ValueError(f"per_device_train_batch_size=auto: not even one block fits: {reason}") from error
            return False
        finally:
            objective.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
        return True

    with _bounded_memory(accelerator):
        too_few, number = 0, 1
        while not fits(number):
            too_few, number = number, min(2 * number, share)
        number = bisect.bisect_left(range(number), True, lo=too_few + 1, key=fits)  # the smallest that fits
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def memory_needed(
    accelerator: Accelerator,
    objective: Objective,
    optimizers: Sequence[Optimizer],
    size: int,
    length: int,
    masked_share: float,
) -> Callable[[int], float]:
    """Number of shards -> bytes that a process needs for an update; 1 is DDP.

    They are counted without computing the update: tensors without content pass through the model, which is whole.
    ``size`` is the blocks of a micro-batch.
    """
    weights = sum(p.nbytes for p in objective.parameters())
    gradients = sum(p.nbytes for p in objective.parameters() if p.requires_grad)
    # Muon and an average have one tensor for each parameter, the others two.
    slots = [(1 if isinstance(one, torch.optim.Muon | WeightAverage) else 2, one.param_groups) for one in optimizers]
    state = sum(number * p.nbytes for number, groups in slots for group in groups for p in group["params"])
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in encoder_layers(objective.model)]
    root, layer = weights - sum(layers), max(layers, default=0)
    fake = FakeTensorMode()
    inputs: dict[str, torch.Tensor] = {name: fake.from_tensor(buffer) for name, buffer in objective.named_buffers()}
    for name, p in objective.named_parameters():
        inputs[name] = fake.from_tensor(p.detach()).requires_grad_(p.requires_grad)
    own = {t.untyped_storage()._cdata for t in inputs.values()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    num_masked = round(size * length * masked_share)
    with fake, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), accelerator.autocast():
        batch = MaskedBatch.of_zeros(size, length, num_masked=num_masked, device=next(objective.parameters()).device)
        functional_call(objective, inputs, (batch,))
    activations = sum(num for storage, num in saved.items() if storage not in own)
    # Beside its shard a process has for a while, whole: the weights of the root and of two layers, and the gradients
    # of the root and of one layer, twice while they are exchanged.
    gathered = 3 * root + 4 * layer
    kept = weights + gradients + state
    return lambda shards: activations + (kept if shards == 1 else kept / shards + gathered)


@contextlib.contextmanager
def _bounded_memory(accelerator: Accelerator) -> Iterator[None]:
    """Let an allocation beyond the free memory raise an error. On a CPU the system would kill the process instead."""
    if accelerator.device.type == "cuda":
        # This sets it for the current GPU, which is the accelerator's. With one process its device has no index.
        torch.cuda.set_per_process_memory_fraction(SHARE_OF_MEMORY)
        undo = partial(torch.cuda.set_per_process_memory_fraction, 1.0)
    else:
        free = psutil.virtual_memory().available * SHARE_OF_MEMORY / accelerator.num_processes
        old = resource.getrlimit(resource.RLIMIT_AS)
        limits = [psutil.Process().memory_info().vms + int(free), *(x for x in old if x != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), old[1]))
        undo = partial(resource.setrlimit, resource.RLIMIT_AS, old)
    try:
        yield
    finally:
        undo()
