"""Launched as users launch: one or two processes over gloo, by each launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ACCELERATE = [str(BIN / "accelerate"), "launch"]
ONE = [*ACCELERATE, "--config_file", "accelerate_config.yaml", "-m", "launch.train"]
TWO = [
    *ACCELERATE,
    "--config_file",
    "accelerate_config.yaml",
    "--multi_gpu",
    "--num_processes",
    "2",
    "-m",
    "launch.train",
]
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node", "2", "-m", "launch.train"]
PLAIN = [sys.executable, "-m", "launch.train"]


def _launch(launcher: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"OMP_NUM_THREADS", "ACCELERATE_USE_CPU"}}
    if launcher in (TWO, TORCHRUN):
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run(
        [*launcher, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def words(corpus_file: Path, cache_dir: str) -> list[str]:
    """A ModernBERT, which has no dropout, so that it may be cut into other micro-batches.

    21 blocks, 10 an update: the third update of each epoch is a single block, of which the second process has none.
    """
    settings = {
        "dataset": str(corpus_file),
        "eval_fraction": "0.9",
        "cache_dir": cache_dir,
        "vocab_size": "300",
        "block_size": "40",
        "model_type": "modernbert",
        "global_batch_size": "10",
        "max_steps": "8",
        "eval_steps": "4",
        "logging_steps": "1",
        "learning_rate": "1e-3",
    }
    shape = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=4", "intermediate_size=48"]
    flat = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return [*flat, "--train_tokenizer", "--model_config", *shape]


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_one(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    done = _launch(ONE, *words, "--output_dir", str(folder))
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    assert f"device   cpu, precision no, {cores} threads each" in done.stdout  # the launcher sets one
    assert "3 updates an epoch" in done.stdout
    return folder


def _assert_same_run(one: Path, other: Path) -> None:
    """P1 and P4 across worlds: losses and norms to 1e-5, evaluations to 1e-6 at the start, counts exactly."""
    for a, b in zip(_rows(one), _rows(other), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"tokens_per_second"}:
            exact = key in {"step", "epoch", "num_masked_tokens", "eval_num_masked_tokens", "learning_rate"}
            assert b[key] == (a[key] if exact else pytest.approx(a[key], rel=1e-5)), key
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-4, name  # after 8 AdamW updates of up to 1e-3


@pytest.mark.parametrize(("launcher", "extra"), [(TWO, []), (TORCHRUN, ["--per_device_train_batch_size", "2"])])
def test_two_processes_make_the_run_of_one(
    launcher: list[str], extra: list[str], words: list[str], on_one: Path, tmp_path: Path
) -> None:
    done = _launch(launcher, *words, *extra, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unigram") == 2  # said once, at the start and in the last lines
    _assert_same_run(on_one, tmp_path)


def test_a_run_goes_on_with_another_number_of_processes(words: list[str], on_one: Path, tmp_path: Path) -> None:
    """Saved on one process after 4 steps, gone on with on two: the losses of the uninterrupted run."""
    shutil.copytree(on_one, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000008")
    done = _launch(TWO, *words, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest")
    assert done.returncode == 0, done.stderr
    assert "after step 4" in done.stdout
    _assert_same_run(on_one, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cpu", "--num_processes", "2"], "2 processes were asked for and 1 started"),
        (["--config_file", "{tmp}/eight.yaml"], "8 processes were asked for and 1 started"),
    ],
)
def test_a_world_that_is_not_the_one_asked_for_is_refused(
    flags: list[str], message: str, words: list[str], tmp_path: Path
) -> None:
    text = (ROOT / "accelerate_config.yaml").read_text()
    (tmp_path / "eight.yaml").write_text(text.replace("num_processes: 1", "num_processes: 8"))
    launcher = [*ACCELERATE, *(flag.format(tmp=tmp_path) for flag in flags), "--quiet", "-m", "launch.train"]
    done = _launch(launcher, *words, "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr
    assert "accelerate launch --multi_gpu --num_processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_bad_input_on_two_processes_ends_both_with_one_line(words: list[str], tmp_path: Path) -> None:
    done = _launch(TWO, *words, "--dataset", str(tmp_path / "missing.txt"), "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("error: dataset=") == 1
    assert not (tmp_path / "run").exists()


def test_filling_masks_from_the_command_line(on_one: Path) -> None:
    command = [sys.executable, "-m", "launch.fill_mask", "--model", str(on_one / "model"), "--top_k", "2"]
    texts = ["the cat <mask> on a mat", "the [MASK] sat on <mask> mat"]
    shown = _launch([*command, *texts])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("%") == 6
    lines = _launch([*command, "--json", *texts]).stdout.splitlines()
    single, double = (json.loads(line) for line in lines)
    assert [set(fill) for fill in single] == [{"score", "token", "token_str", "sequence"}] * 2
    assert [len(fills) for fills in double] == [2, 2]
    failed = _launch([*command, "no blank here"])
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: no mask token in 'no blank here'")
