"""What only a GPU can show."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, Order, Place, TrainLoader
from tests.batches import batch_of, constant, micro_batches_of
from tests.models import tiny_model, without_dropout
from train_loop import MaskedLMObjective, TrainConfig, build_optimizers, train_step
from train_loop.speed.flops import matmul_rate
from train_loop.speed.memory import fewest_micro_batches

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("family", ["roberta", "modernbert"])
@pytest.mark.parametrize("layout", ["blocks", "documents"])
def test_the_loss_and_gradient_are_those_of_fp32_on_a_processor(
    family: str,
    layout: str,
    precision: str,
    documents: tuple[Documents, Documents],
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
) -> None:
    """Of whole blocks, and of texts side by side, whose attention on a GPU in half precision is another kernel."""
    dataset = micro_batches_of(documents[0], tokenizer, data_config, seed=1)
    if layout == "documents":
        dataset = replace(dataset, collator=replace(dataset.collator, is_flat=True))
    batch = batch_of(dataset, np.arange(8))
    results = []
    for device, dtype in (("cpu", None), (DEVICE, torch.bfloat16 if precision == "bf16" else None)):
        objective = MaskedLMObjective(without_dropout(tiny_model(family, vocab_size=len(tokenizer))).to(device))
        with torch.autocast(device, dtype, enabled=dtype is not None):
            objective.adapt(TrainConfig(), 16, document_attention=False, has_padding=layout == "documents")
            loss = objective(batch.to(torch.device(device)))[0]
        loss.backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in objective.parameters() if p.grad is not None])
        results.append((loss.item(), gradient))
    (expected, expected_gradient), (found, gradient) = results
    bound = 0.02 if precision == "bf16" else 2e-3 if DEVICE == "cuda" else 1e-5  # TF32 has 10 bits
    assert found == pytest.approx(expected, rel=bound)
    assert (gradient - expected_gradient).norm() < 5 * bound * expected_gradient.norm()


@on_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_no_update_waits_for_the_gpu(
    documents: tuple[Documents, Documents],
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
    precision: str,
    optimizer: Literal["adamw", "muon"],
    is_flat: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches, loss, clipping, optimizers, loss scaler: all of it only queues work, until somebody reads a value."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=precision)
    model = tiny_model("roberta", vocab_size=len(tokenizer))
    objective = MaskedLMObjective(model.to(accelerator.device))
    objective.adapt(TrainConfig(pad_vocabulary_to=64), 8, document_attention=False, has_padding=is_flat)
    assert objective.last_layer is not None
    objective, *optimizers = accelerator.prepare(objective, *build_optimizers(model, TrainConfig(optimizer=optimizer)))
    dataset = micro_batches_of(documents[0], tokenizer, data_config, seed=1)
    dataset = replace(dataset, collator=replace(dataset.collator, is_flat=is_flat))
    loader = TrainLoader(
        dataset,
        Order((len(dataset.blocks),), (1.0,), 8, 0),
        rates=constant,
        micro_batch_size=4,
        place=Place(device=accelerator.device),
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


@on_gpu
@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_the_matrix_rate_is_that_of_the_gpu_that_is_asked(index: int) -> None:
    """Also of one that is not the current one: without waiting for it, a rate would be beyond any GPU's."""
    assert 1e12 < matmul_rate(torch.device("cuda", index), "fp16") < 1e16


@on_gpu
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
