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
    assert gather_in_last_layer(objective)
    objective.pad_vocabulary_to = 64
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
