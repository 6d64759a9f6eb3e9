"""What only a GPU can show."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, Order, TrainLoader
from tests.batches import micro_batches_of
from tests.models import tiny_model
from train_loop import MaskedLMObjective, TrainConfig, build_optimizers, gather_in_last_layer, train_step
from train_loop.speed.flops import matmul_rate
from train_loop.speed.memory import fewest_micro_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_no_update_waits_for_the_gpu(
    documents: tuple[Documents, Documents],
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
    precision: str,
    optimizer: Literal["adamw", "muon"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches, loss, clipping, optimizers, loss scaler: all of it only queues work, until somebody reads a value."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=precision)
    model = tiny_model("roberta", vocab_size=len(tokenizer))
    objective = MaskedLMObjective(model.to(accelerator.device))
    assert gather_in_last_layer(objective.logits)
    objective.logits.pad_vocabulary_to = 64
    objective, *optimizers = accelerator.prepare(objective, *build_optimizers(model, TrainConfig(optimizer=optimizer)))
    dataset = micro_batches_of(documents[0], tokenizer, data_config, seed=1)
    loader = TrainLoader(
        dataset,
        Order((len(dataset.blocks),), (1.0,), 8, 0),
        mlm_probability=lambda step: 0.15,
        micro_batch_size=4,
        rank=0,
        num_processes=1,
        device=accelerator.device,
        config=replace(data_config, dataloader_num_workers=1),
    )
    losses = []
    try:
        for step, batches in enumerate(loader.steps(0, 6)):
            metrics = train_step(
                accelerator, objective, optimizers, batches, step=step, lr_factor=1.0, max_grad_norm=1.0, seed=0
            )
            losses.append(metrics.loss_sums)
            if step == 2:  # the first ones load kernels and make the optimizer's state
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
        AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_the_matrix_rate_is_that_of_the_gpu_that_is_asked(index: int) -> None:
    """Also of one that is not the current one: without waiting for it, a rate would be beyond any GPU's."""
    assert 1e12 < matmul_rate(torch.device("cuda", index), "fp16") < 1e16


def test_a_micro_batch_that_fits_is_found_on_a_device_without_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the device of every run on one GPU is."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator()
        objective = MaskedLMObjective(tiny_model("roberta").to(accelerator.device))
        options = {"length": 16, "masked_share": 0.15, "has_attention_mask": False}
        assert fewest_micro_batches(accelerator, objective, 8, **options) == 1
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
