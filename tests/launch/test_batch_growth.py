"""``--initial_batch_size``: the size is a function of the step, each block is met once a pass, and a run resumes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data.batches.order import Order
from tests.launch.conftest import Train
from tests.launchers import assert_same_run, launcher, run, tiny_run
from train_loop import TrainConfig, plan_batches

GROWS = (
    "--initial_batch_size",
    "2",
    "--batch_warmup_steps",
    "4",
    "--max_steps",
    "6",
    "--lr_scheduler_type",
    "constant",
)
SIZES = [2, 5, 5, 8, 8, 8]  # before each: 2 t + 6 t * t / (2 * 4), rounded down: 0, 2, 7, 12, 20; then 8 more each


@given(
    initial=st.integers(1, 40),
    added=st.integers(0, 60),
    growing=st.integers(1, 30),
    num_blocks=st.integers(1, 300),
    parts=st.integers(1, 3),
)
def test_it_grows_evenly_and_meets_every_block_once_a_pass(
    initial: int, added: int, growing: int, num_blocks: int, parts: int
) -> None:
    config = TrainConfig(
        initial_batch_size=initial, global_batch_size=initial + added, batch_warmup_steps=growing, max_steps=40
    )
    plan = plan_batches(config, num_blocks, 1)
    order = Order((num_blocks,), (1.0,), plan.global_batch_size, 3, blocks_before=plan.blocks_before)
    batches = [order.global_batch(step) for step in range(40)]
    sizes = [len(ids) for _, ids in batches]
    assert sizes[growing:] == [initial + added] * (40 - growing)
    assert all(abs(size - (initial + added * (step + 0.5) / growing)) < 1 for step, size in enumerate(sizes[:growing]))
    passes, ids = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert np.array_equal(passes, np.arange(len(ids)) // num_blocks)
    for start in range(0, len(ids) - num_blocks + 1, num_blocks):
        assert np.array_equal(np.sort(ids[start : start + num_blocks]), np.arange(num_blocks))
    assert order.draws_by_source(20).tolist() == [sum(sizes[:20])]


@pytest.mark.parametrize("kind", ["cached", "mixture", "streaming"])
def test_a_run_grows_as_its_rows_say_and_resumes_bit_for_bit(
    kind: str, train: Train, tmp_path: Path, eli5_folder: Path, corpus_file: Path
) -> None:
    words = {
        "cached": (),
        "mixture": ("--mixture", f"{eli5_folder}=0.7", f"{corpus_file}=0.3"),
        "streaming": ("--streaming", "--num_streams", "3", "--shuffle_buffer_size", "9"),
    }[kind]
    words = (*words, *GROWS, "--save_steps", "3", "--save_total_limit", "none")
    rows = [row for row in train(tmp_path / "whole", *words) if "loss" in row]
    assert [row["num_tokens"] for row in rows] == [16 * size for size in SIZES]
    assert {row["epoch"] for row in rows} == {None}
    middle = tmp_path / "whole" / "checkpoints" / "step-00000003"
    train(tmp_path / "cut", *words, "--resume_from_checkpoint", str(middle))
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(tmp_path / f / "checkpoints" / "step-00000006" / name) for f in ("whole", "cut"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--shard", "true"), ("--streaming", "--num_streams", "4")])
def test_two_processes_make_the_run_of_one(
    how: tuple[str, ...], corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    """Its first update has one block, of which the second process has none, and the last ones three micro-batches."""
    words = tiny_run(corpus_file, cache_dir, initial_batch_size=1, batch_warmup_steps=6, per_device_train_batch_size=2)
    words += how
    assert run(launcher("python", 1), *words, "--output_dir", str(tmp_path / "one")).returncode == 0
    done = run(launcher("torchrun", 2), *words, "--output_dir", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--initial_batch_size", "4"),
            "a batch that grows needs initial_batch_size, batch_warmup_steps",
        ),
        (("--batch_warmup_steps", "4"), "a batch that grows needs initial_batch_size, batch_warmup_steps"),
        (
            (*GROWS[:4], "--max_steps", "none"),
            "a batch that grows needs initial_batch_size, batch_warmup_steps",
        ),
        (
            (*GROWS, "--initial_batch_size", "9"),
            "initial_batch_size=9 and batch_warmup_steps=4: at most 8 blocks",
        ),
        ((*GROWS, "--batch_warmup_steps", "7"), "batch_warmup_steps=7: at most 8 blocks and 6 updates"),
        ((*GROWS, "--initial_batch_size", "0"), "initial_batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_grow_is_one_line(words: tuple[str, ...], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal(*words)


def test_another_growth_does_not_go_on(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", *GROWS, "--save_steps", "3")
    with pytest.raises(SystemExit):
        train(tmp_path / "run", *GROWS, "--batch_warmup_steps", "5", "--resume_from_checkpoint", "latest")
    assert "was made with batch_warmup_steps=4, and this run has batch_warmup_steps=5" in capsys.readouterr().err
