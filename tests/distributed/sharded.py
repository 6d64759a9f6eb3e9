"""Assertions on two processes, started by test_shards.py: what an update does under shards, beside DDP."""

from collections import Counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from data import MaskedBatch
from tests.models import tiny_model, without_dropout
from tests.waits import Waits, untied
from train_loop import MaskedLMObjective, StepMetrics, TrainConfig, build_optimizers, train_step
from train_loop.objective import freeze_unused
from train_loop.parallel import full_state, prepare

CPU = torch.device("cpu")


class Collectives(TorchDispatchMode):
    """Counts the collectives on tensors within it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self.count[func._schema.name.partition("::")[2].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def batch(seed: int) -> MaskedBatch:
    """Two random blocks of eight tokens, three of which are masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (2, 8), generator=generator)
    positions = torch.tensor([1, 6, 12])
    return MaskedBatch(ids, positions, ids.flatten()[positions], None, torch.tensor([seed, seed + 1]))


class Trained:
    """A tiny model after some updates, and what the last one told."""

    def __init__(
        self, accelerator: Accelerator, family: str, *, optimizer: str, shard: bool, is_tied: bool = True
    ) -> None:
        config = TrainConfig(optimizer=optimizer, learning_rate=1e-2, shard=shard)
        self.accelerator = accelerator
        model = without_dropout(tiny_model(family))
        self.bare = MaskedLMObjective(model if is_tied else untied(model))
        freeze_unused(self.bare)
        self.objective, self.optimizers = prepare(accelerator, self.bare, build_optimizers, config)

    def step(self, step: int, batches: list[MaskedBatch]) -> StepMetrics:
        return train_step(
            self.accelerator, self.objective, self.optimizers, batches,
            step=step, lr_factor=1.0, max_grad_norm=1.0, seed=0,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Whole tensors, on rank 0."""
        weights, others = full_state(self.bare, self.optimizers, is_wanted=self.accelerator.is_main_process)
        return {name: tensor.clone() for name, tensor in (weights | others).items()}


def the_last_micro_batch_alone_scatters_gradients(accelerator: Accelerator) -> None:
    trained = Trained(accelerator, "roberta", optimizer="adamw", shard=True)
    batches = [batch(10 * accelerator.process_index + i) for i in range(3)]
    trained.step(0, batches[:1])
    with Collectives() as of_one:
        trained.step(1, batches[:1])
    with Collectives() as of_three:
        trained.step(2, batches)
    scatters = [[n for name, n in c.count.items() if "reduce_scatter" in name] for c in (of_one, of_three)]
    assert scatters == [[3], [3]], (of_one.count, of_three.count)  # two layers and the rest of the model


def tied_weights_stay_tied_and_every_process_has_its_share(accelerator: Accelerator) -> None:
    trained = Trained(accelerator, "roberta", optimizer="muon", shard=True)
    trained.step(0, [batch(accelerator.process_index)])
    model = trained.bare.model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tensors = [*model.parameters(), *(v for o in trained.optimizers for s in o.state.values() for v in s.values())]
    shards = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    assert all(isinstance(p, DTensor) for p in model.parameters())
    whole, mine = sum(t.numel() for t in shards), sum(t.to_local().numel() for t in shards)
    assert mine <= 0.52 * whole, (mine, whole)  # the first process has one row more where they cannot be halved


def a_gradient_that_is_not_finite_on_one_process_changes_nothing_on_any(accelerator: Accelerator) -> None:
    for optimizer in ("adamw", "muon"):
        trained = Trained(accelerator, "modernbert", optimizer=optimizer, shard=True)
        trained.step(0, [batch(accelerator.process_index)])
        before = trained.state()
        if accelerator.process_index == 1:
            trained.bare.register_forward_hook(lambda module, args, sums: sums * torch.nan)
        assert trained.step(1, [batch(7)]).is_skipped
        after = trained.state()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def nothing_waits_for_the_device(accelerator: Accelerator) -> None:
    for shard in (False, True):
        for optimizer in ("adamw", "muon"):
            trained = Trained(accelerator, "modernbert", optimizer=optimizer, shard=shard, is_tied=False)
            batches = [batch(10 * accelerator.process_index + i) for i in range(2)]
            trained.step(0, batches)
            with Waits(batches) as waits:
                trained.step(1, batches)
            assert waits.count == {}, (shard, optimizer, waits.count)


def shards_make_the_updates_of_ddp(accelerator: Accelerator) -> None:
    for family in ("roberta", "modernbert"):
        for optimizer in ("adamw", "muon"):
            both = [Trained(accelerator, family, optimizer=optimizer, shard=shard) for shard in (False, True)]
            for step in range(5):
                ddp, fsdp = (one.step(step, [batch(2 * step + accelerator.process_index)]) for one in both)
                assert torch.allclose(ddp.grad_norm, fsdp.grad_norm, rtol=1e-5), (family, optimizer, step)
                assert torch.allclose(ddp.loss_sums, fsdp.loss_sums, rtol=1e-5), (family, optimizer, step)
            one, other = (trained.state() for trained in both)
            for name, tensor in one.items():
                assert torch.allclose(tensor, other[name], atol=1e-4), (family, optimizer, name)


def main() -> None:
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    the_last_micro_batch_alone_scatters_gradients(accelerator)
    tied_weights_stay_tied_and_every_process_has_its_share(accelerator)
    a_gradient_that_is_not_finite_on_one_process_changes_nothing_on_any(accelerator)
    nothing_waits_for_the_device(accelerator)
    shards_make_the_updates_of_ddp(accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
