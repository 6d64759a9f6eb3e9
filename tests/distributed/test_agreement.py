"""P10: processes compare what they hold before they train. Two machines without a shared disk, by two folders each."""

import contextlib
import platform
import shutil
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tests.conftest import sentences
from tests.distributed.machines import run_machines, start_machines
from tests.launchers import assert_same_run, launcher, rows, run, tiny_run


def _machine(tmp_path: Path, number: int, texts: list[str] | None = None, **changes: str | int | float) -> list[str]:
    """Words of a run on a machine with a corpus, a cache and a run's folder of its own."""
    home = tmp_path / f"machine{number}"
    home.mkdir(exist_ok=True)
    corpus = home / "sentences.txt"
    corpus.write_text("\n".join(sentences(400) if texts is None else texts) + "\n")
    settings = {"max_steps": 4, "eval_steps": 2, **changes, "output_dir": str(home / "run")}
    return tiny_run(corpus, str(home / "cache"), **settings)


@pytest.mark.slow
def test_two_machines_without_a_shared_disk_train_and_go_on(tmp_path: Path) -> None:
    """The first writes; the second, which has never seen the checkpoint, receives it: the run of one process."""
    resume = ("--resume_from_checkpoint", "latest")
    for max_steps, more in ((4, ()), (8, resume)):
        words = [_machine(tmp_path, n, max_steps=max_steps, lr_scheduler_type="constant") for n in (0, 1)]
        done = run_machines([[*of_machine, *more] for of_machine in words])
        assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "after step 4" in done[0].stdout
    assert "changed  max_steps: 8, was 4" in done[0].stdout
    assert not (tmp_path / "machine1" / "run" / "checkpoints").exists()
    whole = run(launcher("python", 1), *words[0], "--output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert_same_run(tmp_path / "machine0" / "run", tmp_path / "whole")


@pytest.mark.slow
def test_the_best_model_of_the_first_machine_is_the_final_one(tmp_path: Path) -> None:
    """Only the first machine has the checkpoint of the best evaluation, which is that of the untrained model."""
    changes = {"learning_rate": 1, "max_steps": 6, "eval_on_start": "true", "load_best_model_at_end": "true"}
    done = run_machines([_machine(tmp_path, number, **changes) for number in (0, 1)])
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    folder = tmp_path / "machine0" / "run"
    best = min((row for row in rows(folder) if "eval_loss" in row), key=lambda row: row["eval_loss"])["step"]
    assert best == 0
    final, expected = (
        load_file(path / "model.safetensors")
        for path in (folder / "model", folder / "checkpoints" / f"step-{best:08d}")
    )
    assert all(torch.equal(tensor, final[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("changes", "texts", "message"),
    [
        pytest.param(
            {"seed": 7},
            None,
            "process 1 (on {host}) has seed=7, and process 0 (on {host}) has 0",
            marks=pytest.mark.slow,
        ),
        pytest.param({"max_steps": 9}, None, "has max_steps=9, and process 0", marks=pytest.mark.slow),
        ({}, ["the dog ran", *sentences(400)[1:]], "(SHA-256)="),
        pytest.param({}, sentences(399), "(SHA-256)=", marks=pytest.mark.slow),
        pytest.param({"vocab_size": 290}, None, "has vocab_size=290", marks=pytest.mark.slow),
        pytest.param(
            {"dataset": "/nowhere/corpus.txt"}, None, "process 1: dataset='/nowhere/corpus.txt'", marks=pytest.mark.slow
        ),
    ],
)
def test_machines_that_differ_are_refused_in_one_line_that_names_what_differs(
    changes: dict[str, str | int | float], texts: list[str] | None, message: str, tmp_path: Path
) -> None:
    done = run_machines([_machine(tmp_path, 0), _machine(tmp_path, 1, texts, **changes)])
    for process in done:
        assert process.returncode != 0
        (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert message.format(host=platform.node()) in line
    assert not (tmp_path / "machine0" / "run").exists()


@pytest.mark.slow
def test_an_error_of_the_second_process_alone_reaches_the_person_with_its_rank(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Two processes of one machine, streaming: the launcher itself prints no more than an exit code."""
    corpus = tmp_path / "rows.jsonl"
    good = [f'{{"text": "{text}"}}' for text in sentences(4000)]
    corpus.write_text("\n".join([*good[:3500], "broken", *good[3500:]]) + "\n")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = tiny_run(
        corpus,
        str(tmp_path / "cache"),
        streaming="true",
        num_streams=2,
        max_steps=500,
        eval_fraction=0.01,
        eval_steps=500,
        max_eval_blocks=2,
        train_tokenizer="false",
        tokenizer_name_or_path=str(tmp_path / "tokenizer"),
    )
    done = run(launcher("torchrun", 2), *words, "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ") and "rows.jsonl" in line]
    assert line.startswith("error: process 1: ")
    assert "line 3501: not JSON" in line


@pytest.mark.slow
def test_a_preparation_longer_than_the_time_limit_ends_nobody(tmp_path: Path) -> None:
    """The second machine's blocks are locked for longer than process_timeout; the first waits for them."""
    words = [_machine(tmp_path, number, process_timeout=5) for number in (0, 1)]
    done = run_machines(words)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    shutil.rmtree(tmp_path / "machine0" / "run")
    with contextlib.ExitStack() as locks:
        for folder in (tmp_path / "machine1" / "cache" / "blocks").glob("*[!k]"):
            if folder.is_dir():
                locks.enter_context(FileLock(folder.with_suffix(".lock")))
                shutil.rmtree(folder)
        started = start_machines(words)
        began = time.monotonic()
        while time.monotonic() - began < 15 and all(process.poll() is None for process in started):
            time.sleep(0.2)
        assert [process.poll() for process in started] == [None, None]
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
