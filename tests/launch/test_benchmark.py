"""The benchmarks on a tiny text and model, one round: the shape of what they print. No time is asserted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.benchmark import main

_MODEL = ("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=4", "intermediate_size=48", "vocab_size=300")


def _report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main([*words, "--vocab_size", "300", "--length", "16", "--repeats", "1", "--copies", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["repeats"] == 1
    assert report["surroundings"]["torch"] == torch.__version__
    return report  # type: ignore[no-any-return]


def _is_spread(value: dict[str, float]) -> bool:
    return set(value) == {"median", "min", "max"} and 0 < value["min"] <= value["median"] <= value["max"]


@pytest.mark.slow  # every contender is a process of its own
def test_data(corpus_file: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = _report(capsys, "data", "--dataset", str(corpus_file), "--cache_dir", cache_dir)
    assert report["benchmark"] == "data"
    assert len(report["cases"]) == 4
    for case in report["cases"]:
        assert case["unit"] == "tokens/s"
        assert all(_is_spread(case[name]) for name in ("ours", "guide", "ratio"))


@pytest.mark.slow  # every contender is a process of its own
def test_train(corpus_file: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("--batch", "4", "--steps", "2", "--warm_up", "1", "--shape", *_MODEL)
    report = _report(capsys, "train", "--dataset", str(corpus_file), "--cache_dir", cache_dir, *run)
    assert report["benchmark"] == "train"
    assert _is_spread(report["matmul_flops_per_second"])
    names = [case["name"] for case in report["cases"]]
    assert names == ["this project", "Trainer", "Trainer, tuned", "Trainer, MaskedLMLoss", "Accelerate loop"]
    assert report["cases"][1]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for case in report["cases"]:
        assert all(_is_spread(value) for name, value in case.items() if name != "name")


@pytest.mark.slow  # every contender is a process of its own
@pytest.mark.parametrize("grouping", ["line_by_line", "pack"])
def test_texts_side_by_side(
    corpus_file: Path, cache_dir: str, grouping: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--batch", "4", "--steps", "2", "--warm_up", "1", "--grouping", grouping, "--shape", *_MODEL)
    report = _report(capsys, "train", "--dataset", str(corpus_file), "--cache_dir", cache_dir, *run)
    assert [case["name"] for case in report["cases"]] == ["this project", "padded or masked"]
    assert report["cases"][1]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for case in report["cases"]:
        assert all(_is_spread(value) for name, value in case.items() if name != "name")


@pytest.mark.slow  # every contender is a process of its own
def test_fill_mask(corpus_file: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("--texts", "50", "--shape", *_MODEL)
    report = _report(capsys, "fill_mask", "--dataset", str(corpus_file), "--cache_dir", cache_dir, *run)
    assert report["benchmark"] == "fill_mask"
    assert report["num_texts"] == 50
    assert len(report["cases"]) == 3
    for case in report["cases"]:
        assert all(_is_spread(case[name]) for name in ("ours", "pipeline", "ratio"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--shape", "hidden_size=big"], "hidden_size=256"),
        (["train", "--batch", "0"], "1 or more"),
        (["data", "--repeats", "0"], "repeats"),
        (["fill_mask", "--texts", "0"], "texts=0 must be 1 or more"),
        (["data", "--dataset", "no/such/file.txt"], "no such file"),
    ],
)
def test_an_error_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
