"""What a GPU would refuse, found without one: tensors of `FakeTensorMode` have a device and no values.

Two devices in one operation, and a value that the processor would have to read, are errors. This needs a torch that was
built for CUDA, in an environment of its own (an unpinned torch, several GB); on any other it is skipped.
The backward needs a real device, and autocast switches itself off: `tests/train_loop/test_gpu.py` has these.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, MaskedBatch
from tests.batches import batch_of, micro_batches_of
from tests.models import tiny_model
from train_loop import MaskedLMObjective, TrainConfig, build_optimizers
from train_loop.optim import set_learning_rates, step_unless

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch was not built for CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py does it on the GPU itself"),
]
FAMILIES = ("roberta", "modernbert", "bert", "distilbert", "electra", "albert", "eurobert")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("layout", ["blocks", "padded", "side by side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loading_forward_clipping_and_step_stay_on_the_gpu(
    family: str,
    layout: str,
    optimizer: str,
    documents: tuple[Documents, Documents],
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
) -> None:
    grouping: Any = "concatenate" if layout == "blocks" else "line_by_line"
    dataset = micro_batches_of(documents[0], tokenizer, replace(data_config, grouping=grouping), seed=1)
    dataset = replace(dataset, collator=replace(dataset.collator, is_flat=layout == "side by side", trims=True))
    batch = batch_of(dataset, np.arange(6))
    objective = MaskedLMObjective(tiny_model(family, vocab_size=len(tokenizer)))
    objective.adapt(TrainConfig(), 16, document_attention=False, has_padding=layout == "side by side")
    objective.logits.pad_vocabulary_to = 64
    device = torch.device("cuda", 0)
    with FakeTensorMode() as mode:

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return mode.from_tensor(tensor)

        for module in objective.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    on_gpu = fake(parameter).detach().to(device)
                    module._parameters[name] = torch.nn.Parameter(on_gpu)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = fake(buffer).to(device)
        objective.model.tie_weights()
        faked: MaskedBatch = batch._map(fake).to(device)
        sums = objective(faked)
        assert sums.device == device
        assert objective.eval_sums(faked).device == device
        optimizers = build_optimizers(objective, TrainConfig(optimizer=cast(Any, optimizer)))
        for parameter in objective.parameters():
            parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0, foreach=True)
        assert norm.device == device
        set_learning_rates(optimizers, 0.5)

        class Prepared:
            def __init__(self, optimizer: torch.optim.Optimizer) -> None:
                self.optimizer = optimizer

        step_unless(~torch.isfinite(norm), cast(Any, [Prepared(one) for one in optimizers]), None)


def test_the_mode_sees_two_devices_and_a_value_that_is_read() -> None:
    """Or the test above would show nothing."""
    with FakeTensorMode():
        one, other = torch.zeros(3, device="cuda"), torch.zeros(3)
        with pytest.raises(RuntimeError, match="device"):
            _ = one + other
        with pytest.raises(Exception, match="_local_scalar_dense"):
            one.sum().item()
        with pytest.raises(Exception, match="nonzero"):
            torch.nonzero(one)
