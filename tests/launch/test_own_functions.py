"""Functions from a user's own file, ``path/to/file.py:name``, for whatever is also found by a name."""

import multiprocessing
import re
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import Train

MINE = """
import numpy as np
import torch

from data.batches.masking import choose_token, choose_whole_word


def choose_rare(input_ids, allowed, word_starts, draws, probability):
    assert word_starts is None
    return choose_token(input_ids, allowed & (input_ids > 280), word_starts, draws, probability)


def choose_words(input_ids, allowed, word_starts, draws, probability):
    return choose_whole_word(input_ids, allowed, word_starts, draws, probability)


choose_words.needs_words = True


def in_halves(progress, start, end):
    return start if progress < 0.5 else end


def in_pairs(rest, tokens, block_size):
    tokens = np.concatenate([rest, tokens])
    size = block_size // 2 * 2
    end = len(tokens) // size * size
    return list(tokens[:end].reshape(-1, size)), tokens[end:]


def sgd(model, config):
    return [torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=0.9)]


def triangle(config, total_steps):
    return lambda step: 1 - abs(2 * step / total_steps - 1)


number = 3
"""

# setting, function, words that it needs
FUNCTIONS = [
    ("masking", "choose_rare", ()),
    ("masking", "choose_words", ()),
    ("mlm_probability_schedule", "in_halves", ("--mlm_probability_end", "0.5")),
    ("grouping", "in_pairs", ()),
    ("optimizer", "sgd", ()),
    ("lr_scheduler_type", "triangle", ()),
]
SAVE = ("--save_steps", "3")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def _losses(rows: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(("setting", "name", "words"), FUNCTIONS, ids=str)
def test_a_function_of_the_users_file_trains_resumes_and_is_refused_once_it_has_changed(
    setting: str,
    name: str,
    words: tuple[str, ...],
    train: Train,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (f"--{setting}", f"{mine}:{name}", *words, *SAVE)
    whole = _losses(train(tmp_path / "whole", *words))
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())[setting] == f"{mine}:{name}"
    run = tmp_path / "run"
    latest = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoints" / "step-00000003"))
    assert _losses(train(run, *words, *latest)) == whole[3:]

    mine.write_text(MINE + "\n# changed\n")
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit) as caught:
        train(run, *words, "--resume_from_checkpoint", "latest")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"was made with {setting} (SHA-256 of the file)=" in error
    assert error.count("\n") == 1
    assert (run / "metrics.jsonl").read_text() == before


def test_the_function_is_the_one_that_is_used(train: Train, mine: Path, tmp_path: Path) -> None:
    """Beside a run by registered names: each of them changes the losses, and a copy of a registered one does not."""
    plain = _losses(train(tmp_path / "plain"))
    for setting, name, words in FUNCTIONS:
        own = _losses(train(tmp_path / name, f"--{setting}", f"{mine}:{name}", *words))
        assert (own == plain) == (name == "in_pairs"), name
    by_name = _losses(train(tmp_path / "words", "--masking", "whole_word"))
    assert by_name == _losses(train(tmp_path / "again", "--masking", f"{mine}:choose_words"))


def test_a_rate_that_is_no_probability_is_one_line(
    train: Train, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text("def rate(progress, start, end):\n    return end if progress < 0.5 else float('nan')\n")
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", "--mlm_probability_schedule", f"{mine}:rate", "--mlm_probability_end", "0.5")
    assert caught.value.code == 1
    assert "mine.py:rate' gives nan for step 4: it must be from 0 to 1" in capsys.readouterr().err


WRONG = """
import numpy as np

from data.batches.masking import choose_token


def mask(input_ids, allowed, word_starts, draws, probability):
    return draws < probability


def ids(input_ids, allowed, word_starts, draws, probability):
    positions, kinds = choose_token(input_ids, allowed, word_starts, draws, probability)
    return positions.astype(np.int32), kinds


def outside(input_ids, allowed, word_starts, draws, probability):
    positions, kinds = choose_token(input_ids, allowed, word_starts, draws, probability)
    return positions + input_ids.size, kinds


def twice(input_ids, allowed, word_starts, draws, probability):
    positions, kinds = choose_token(input_ids, allowed, word_starts, draws, probability)
    return np.repeat(positions, 2), np.repeat(kinds, 2)


def array(rest, tokens, block_size):
    return tokens[: len(tokens) // block_size * block_size].reshape(-1, block_size), tokens[:0]


def signed(rest, tokens, block_size):
    return [tokens[:block_size].astype(np.int64)], tokens[:0]


def long(rest, tokens, block_size):
    return [tokens[: 2 * block_size]], tokens[:0]


def lost(rest, tokens, block_size):
    return [tokens[:block_size]], None


def word(progress, start, end):
    return "half"
"""


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("masking", "mask", r"returns bool\[\d+, 16\]: it must return positions, int64\[M\], and kinds, float64\[M\]"),
        ("masking", "ids", r"returns \(int32\[\d+\], float64\[\d+\]\): it must return positions, int64\[M\]"),
        ("masking", "outside", r": the positions must ascend within 0 to \d+, the flattened batch"),
        ("masking", "twice", r": the positions must ascend within 0 to \d+, the flattened batch"),
        ("grouping", "array", r"returns \(uint32\[\d+, 16\], .*\): it must return a list of blocks, and the rest"),
        ("grouping", "signed", r"returns a block of int64\[16\]: it must be a flat array of uint32"),
        ("grouping", "long", r"returns a block of 32 tokens: it must have 1 to 16"),
        ("grouping", "lost", r"returns a rest of NoneType: it must be a flat array of uint32"),
        ("mlm_probability_schedule", "word", r"gives 'half' for step 1: it must be from 0 to 1"),
    ],
)
def test_a_result_of_another_form_is_one_line(
    setting: str, name: str, message: str, train: Train, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(WRONG)
    end = ("--mlm_probability_end", "0.5") if setting == "mlm_probability_schedule" else ()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", f"--{setting}", f"{mine}:{name}", *end)
    assert caught.value.code == (2 if setting == "grouping" else 1)
    error = capsys.readouterr().err
    assert re.search(f"^error: {setting}='{mine}:{name}' ?{message}", error, re.MULTILINE), error
    assert "Traceback" not in error
    assert len(re.findall("^error: ", error, re.MULTILINE)) == 1


STREAMING = ("--streaming", "true", "--num_streams", "2")
WORKER = ("--dataloader_num_workers", "1")


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [("masking", "mask", WORKER), ("masking", "mask", STREAMING), ("grouping", "signed", STREAMING + WORKER)],
)
def test_so_it_is_in_a_worker_and_when_streaming(
    setting: str,
    name: str,
    words: tuple[str, ...],
    train: Train,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine.write_text(WRONG)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", f"--{setting}", f"{mine}:{name}", *words)
    assert caught.value.code in (1, 2)
    error = capsys.readouterr().err
    assert re.search(f"^error: {setting}='{mine}:{name}' returns ", error, re.MULTILINE), error
    assert "Traceback" not in error


def test_blocks_of_a_changed_grouping_are_made_anew(train: Train, mine: Path, tmp_path: Path) -> None:
    words = ("--grouping", f"{mine}:in_pairs")
    first = _losses(train(tmp_path / "first", *words))
    mine.write_text(MINE.replace("block_size // 2 * 2", "block_size // 4"))
    assert _losses(train(tmp_path / "second", *words)) != first


@pytest.mark.parametrize(
    ("setting", "name", "streaming"),
    [("masking", "choose_words", "false"), pytest.param("grouping", "in_pairs", "true", marks=pytest.mark.slow)],
)
def test_spawned_workers_run_what_the_run_began_with(
    setting: str, name: str, streaming: str, train: Train, mine: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = (f"--{setting}", f"{mine}:{name}", "--streaming", streaming, "--num_streams", "2", "--eval_steps", "6")
    here = _losses(train(tmp_path / "here", *words))
    request.addfinalizer(partial(multiprocessing.set_start_method, multiprocessing.get_start_method(), force=True))
    multiprocessing.set_start_method("spawn", force=True)
    there = _losses(train(tmp_path / "there", *words, "--dataloader_num_workers", "1"))
    assert here == there


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "f", "{path} cannot be read: No such file or directory"),
        (MINE, "choose_rar", "{path} has no 'choose_rar'; did you mean 'choose_rare'?"),
        (MINE, "", "{path} has no ''"),
        (MINE, "number", "number is not a function, its type is int"),
        ("x = 1\nx / 0\n", "f", "{path}, line 2: ZeroDivisionError: division by zero"),
        ("def f(:\n", "f", "{path}: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(1)\n", "f", "{path}, line 2: SystemExit: 1"),
        ("import nowhere_to_be_found\n", "f", "line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ],
)
@pytest.mark.parametrize("setting", ["masking", "optimizer"])
def test_a_file_that_does_not_do_is_one_line(
    setting: str,
    content: str | None,
    name: str,
    message: str,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", f"--{setting}", f"{path}:{name}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {setting}='{path}:{name}': ")
    assert message.format(path=path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["masking", "mlm_probability_schedule", "grouping", "optimizer"])
def test_a_name_that_is_none_says_what_there_is(
    setting: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", f"--{setting}", "mine")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"{setting}='mine' must be one of: " in error
    assert ", or path/to/file.py:name" in error
