"""Micro-batches that fit: found under a real limit of memory, in a process of its own that has little of it."""

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest
import torch
from accelerate import Accelerator

from tests.models import tiny_model
from train_loop import MaskedLMObjective
from train_loop.speed.memory import fewest_micro_batches

_SHARE, _LENGTH = 16, 512  # the attention of a block is some 30 MB


def _find(share: int, megabytes: int | None) -> int:
    torch.set_num_threads(1)
    objective = MaskedLMObjective(tiny_model("bert"))
    accelerator = Accelerator()
    options = {"length": _LENGTH, "masked_share": 0.15, "has_attention_mask": False}
    if megabytes is not None:
        limit = psutil.Process().memory_info().vms + megabytes * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    number = fewest_micro_batches(accelerator, objective, share, **options)
    assert all(p.grad is None for p in objective.parameters())
    return number


def _in_child(share: int, megabytes: int | None) -> int:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as child:
        return child.submit(_find, share, megabytes).result()


@pytest.mark.slow
def test_a_whole_share_where_there_is_memory_and_less_the_less_there_is() -> None:
    assert _in_child(_SHARE, None) == 1
    some, little = _in_child(_SHARE, 400), _in_child(_SHARE, 150)
    assert 1 < some < little < _SHARE


def test_not_even_one_block_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="per_device_train_batch_size=auto: not even one block fits"):
        _in_child(1, 5)
