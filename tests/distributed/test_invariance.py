"""P1 and P2 over any split: the same batches and the same loss and gradient, however they are shared out.

The processes are played one after another in this one, with the loaders and the objective of the real ones;
test_launch.py starts real ones.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, MicroBatches
from launch.run.loaders import mask_rates
from tests.batches import loader_of, micro_batches_of
from tests.models import tiny_model
from train_loop import MaskedLMObjective, TrainConfig

CPU = torch.device("cpu")
DIFFUSION = DataConfig(masking="diffusion", mask_replace_prob=1.0, random_replace_prob=0.0, diffusion_warmup=0.2)


@pytest.fixture(scope="module")
def dataset(
    documents: tuple[Documents, Documents], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> MicroBatches:
    return micro_batches_of(documents[1], tokenizer, data_config, seed=5)


def _update(
    dataset: MicroBatches,
    step: int,
    global_batch_size: int,
    micro_batch_size: int,
    num_processes: int,
    start: int,
    num_workers: int = 0,
    is_flat: bool = False,
    is_diffusion: bool = False,
) -> tuple[list[int], float, torch.Tensor]:
    """Block ids, loss and the whole gradient of one update, from loaders that began at ``start``."""
    objective = MaskedLMObjective(tiny_model("modernbert"))
    if is_flat:
        objective.adapt(TrainConfig(), 8, document_attention=False, has_padding=True)
        dataset = replace(dataset, collator=replace(dataset.collator, is_flat=True))
    if is_diffusion:
        dataset = replace(dataset, collator=replace(dataset.collator, choose=DIFFUSION.choose, shares=(1.0, 0.0)))
    ids: list[int] = []
    count = 0
    loss_sum = torch.zeros(())
    for rank in range(num_processes):
        loader = loader_of(dataset, global_batch_size, micro_batch_size, rank, num_processes, num_workers)
        if is_diffusion:
            loader = replace(loader, rates=mask_rates(DIFFUSION, 100, seed=5))
        *_, batches = loader.steps(start, step + 1)
        has_share = len(loader.plan(step)[0][1]) > 0
        for batch in batches:
            ids += batch.block_ids.tolist() if has_share else []
            count += int(objective.count(batch)[0])
            micro_loss = objective(batch).sum()
            micro_loss.backward()
            loss_sum = loss_sum + micro_loss.detach()
    count = max(count, 1)  # of a block or two by chance none
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]) / count
    return ids, float(loss_sum) / count, gradient


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_processes=st.integers(1, 5),
    micro_batch_size=st.integers(1, 12),
    global_batch_size=st.integers(1, 24),
    num_workers=st.sampled_from([0, 0, 0, 2]),
    step=st.integers(0, 40),
    replayed=st.integers(0, 3),
    is_flat=st.booleans(),
    is_diffusion=st.booleans(),
)
def test_any_split_makes_the_same_update(
    dataset: MicroBatches,
    num_processes: int,
    micro_batch_size: int,
    global_batch_size: int,
    num_workers: int,
    step: int,
    replayed: int,
    is_flat: bool,
    is_diffusion: bool,
) -> None:
    expected_ids, expected_loss, expected_gradient = _update(
        dataset, step, global_batch_size, global_batch_size, 1, step, is_diffusion=is_diffusion
    )
    split = (micro_batch_size, num_processes, max(0, step - replayed), num_workers, is_flat, is_diffusion)
    ids, loss, gradient = _update(dataset, step, global_batch_size, *split)
    assert ids == expected_ids
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
