"""Resuming: which checkpoint counts, what happens to the others, and what is printed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.conftest import Train
from train_loop.watching.run_record import read_run

SAVE = ("--save_steps", "3", "--eval_steps", "3", "--save_total_limit", "none")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _step(number: int) -> str:
    return f"step-{number:08d}"


def test_a_run_that_goes_on_from_an_older_step_keeps_its_own_checkpoints_and_sets_aside_the_newer(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest is the last of this run's history, not that of the largest step; a limit of 1 deleted each."""
    run = tmp_path / "run"
    train(run, *SAVE, "--max_steps", "9")
    older = str(run / "checkpoints" / _step(3))
    train(run, "--resume_from_checkpoint", older, "--max_steps", "7", "--save_steps", "2", "--save_total_limit", "1")
    assert _names(run) == [f"{_step(6)}.aside", _step(7), f"{_step(9)}.aside"]
    aside = load_file(run / "checkpoints" / f"{_step(9)}.aside" / "model.safetensors")
    assert aside.keys() == load_file(run / "model" / "model.safetensors").keys()
    out = capsys.readouterr().out
    assert f"kept in {run / 'checkpoints'}: {_step(6)}.aside, {_step(9)}.aside" in out

    train(run, "--resume_from_checkpoint", "latest", "--max_steps", "8", "--save_total_limit", "1")
    assert f"resumed  {run / 'checkpoints' / _step(7)}, after step 7" in capsys.readouterr().out
    train(run, "--resume_from_checkpoint", str(run / "checkpoints" / _step(8)), "--max_steps", "9")
    assert f"{_step(9)}.aside" in _names(run)


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_work_after_it_stays(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *SAVE, "--max_steps", "9")
    (run / "checkpoints" / _step(9) / "model.safetensors").write_bytes(b"")
    train(run, "--resume_from_checkpoint", "latest", "--max_steps", "8", "--save_total_limit", "1")
    assert _names(run) == [_step(8), f"{_step(9)}.aside"]


def test_checkpoints_of_which_none_is_whole_are_no_start_from_zero(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, *SAVE)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, "--resume_from_checkpoint", "latest")
    assert caught.value.code == 2
    assert "error: resume_from_checkpoint=latest: no checkpoint in" in capsys.readouterr().err
    assert _names(tmp_path) == [_step(3), _step(6)]
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_settings_that_changed_are_said_old_and_new(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--max_steps", "3")
    words = ("--max_steps", "5", "--lr_scheduler_type", "cosine", "--learning_rate", "5e-4")
    train(tmp_path, "--resume_from_checkpoint", "latest", *words)
    changed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed")]
    assert changed == [
        "changed  max_steps: 5, was 3",
        "changed  learning_rate: 0.0005, was 0.001",
        "changed  lr_scheduler_type: 'cosine', was 'linear'",
    ]


# The rate of the last two updates is so high that the best evaluation is an earlier one.
KICK = "def kick(config, total_steps):\n    return lambda step: 1.0 if step < 4 else 1e5\n"
BEST = ("--eval_steps", "2", "--max_steps", "6", "--save_steps", "1", "--save_total_limit", "none")
BEST = (*BEST, "--load_best_model_at_end", "true", "--lr_scheduler_type")


@pytest.fixture
def best_words(tmp_path: Path) -> tuple[str, ...]:
    """Of a run whose best evaluation is not the last one."""
    (tmp_path / "kick.py").write_text(KICK)
    return (*BEST, f"{tmp_path / 'kick.py'}:kick")


def _best(folder: Path) -> int:
    rows = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "eval_loss" in row]
    return int(min(rows, key=lambda row: row["eval_loss"])["step"])


def _assert_final_is(folder: Path, checkpoint: Path) -> None:
    final, expected = (load_file(path / "model.safetensors") for path in (folder / "model", checkpoint))
    assert all(torch.equal(final[name], tensor) for name, tensor in expected.items())


def test_the_best_checkpoint_comes_along_to_another_folder(
    train: Train, tmp_path: Path, best_words: tuple[str, ...]
) -> None:
    """Resumed from another run's folder: the best checkpoint there is copied, and becomes the final model."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(first, *best_words)
    best = _best(first)
    assert best < 5
    train(second, *best_words, "--resume_from_checkpoint", str(first / "checkpoints" / _step(5)))
    assert _names(second) == [_step(best), _step(6)]
    _assert_final_is(second, first / "checkpoints" / _step(best))


def test_a_best_checkpoint_that_is_gone_is_said_at_the_start_and_the_last_model_is_the_final_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], best_words: tuple[str, ...]
) -> None:
    train(tmp_path, *best_words)
    best = _best(tmp_path)
    assert best < 5
    for path in (tmp_path / "checkpoints" / _step(best), tmp_path / "checkpoints" / _step(6), tmp_path / "model"):
        shutil.rmtree(path)
    capsys.readouterr()
    train(tmp_path, *best_words, "--resume_from_checkpoint", "latest")
    printed = capsys.readouterr()
    assert f"the checkpoint of the best evaluation so far, of step {best}, is not to be had" in printed.out
    assert f"the final model is the last one, of step 6, not the best, of step {best}" in printed.out + printed.err
    _assert_final_is(tmp_path, tmp_path / "checkpoints" / _step(6))
    assert read_run(tmp_path).step == 6  # and so the card's figures are those of this model


CACHED = {
    "tokenizer (SHA-256)",
    *("streaming", "block_size", "initial_batch_size", "grouping", "document_attention", "masking", "mlm_probability"),
    *("mlm_probability_schedule", "mlm_probability_end", "mask_replace_prob", "random_replace_prob"),
    *(
        "seed",
        "global_batch_size",
        "objective",
        "objective_kwargs",
        "optimizer",
        "ema_decay",
        "diffusion_warmup",
        "mixture weights",
        "training tokens (SHA-256)",
    ),
}


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ((), set[str]()),
        (
            ("--streaming", "--shuffle_buffer_size", "16", "--num_streams", "4"),
            {"num_streams", "shuffle_buffer_size", "training files (SHA-256)"},
        ),
    ],
    ids=["cached", "streaming"],
)
def test_the_identity_of_a_checkpoint_is_what_it_was_since_it_was_first_written(
    train: Train, tmp_path: Path, words: tuple[str, ...], more: set[str]
) -> None:
    """With one more name, old checkpoints would be refused; with one fewer, another run's would be accepted."""
    train(tmp_path, *words, "--max_steps", "1")
    identity = json.loads((tmp_path / "checkpoints" / _step(1) / "state.json").read_text())["identity"]
    assert identity.keys() == CACHED | more
    assert (identity["optimizer"], identity["block_size"], identity["global_batch_size"]) == ("adamw", 16, 8)
