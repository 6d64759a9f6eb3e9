"""The race on a tiny text, in all loops: what its ledger holds, its replay, its two limits."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.benchmark import main
from launch.benchmarks import race
from launch.benchmarks.race import text
from tests.conftest import sentences

_RECIPE: dict[str, Any] = {
    "block_size": 16,
    "model_type": "modernbert",
    "model_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
    "optimizer": "muon",
    "learning_rate": 5e-3,
    "global_batch_size": 8,
    "max_steps": 8,
    "cpu_threads": 1,
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds another text in the place of the package's."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, rows in (("train", sentences(300)), ("eval", sentences(340)[300:])):
        path = folder / f"{text._PACKAGE}-{text._SHA256[:8]}-{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def _entry(tmp_path: Path, loop: str, **changes: Any) -> str:
    path = tmp_path / loop / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(_RECIPE | changes))
    return str(path)


def _race(cache: Path, *words: str) -> dict[tuple[str, str], dict[str, Any]]:
    ledger = cache / "ledger.jsonl"
    main(["race", "--cache_dir", str(cache), "--ledger", str(ledger), *words])
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    return {(row["entry"], row["limit"]): row for row in rows}


def test_an_entry_is_raced_and_raced_again(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = _entry(tmp_path, "ours")
    row = _race(cache, entry, "--seeds", "1")["ours/tiny", "seconds"]
    assert (row["recipe"], row["seeds"]) == (_RECIPE, [0])
    assert 0 < row["seconds"][0] < race.LIMITS["seconds"]
    assert 0 < row["bits_per_byte"][0] < 8
    _entry(tmp_path, "ours", max_steps=1)  # a replay goes by the ledger, whatever the entry has become
    row = _race(cache, entry, "--replay")["ours/tiny", "seconds"]
    assert row["replayed"]["bits_per_byte"] == row["bits_per_byte"][0]
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:5] == ["60", "seconds", "ours/tiny", "8", f"{statistics.median(row['seconds']):.1f}"]
    assert "+0.0000" in line


@pytest.mark.slow
def test_by_operations(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that an entry does over its run shrinks or grows to the limit."""
    entry = _entry(tmp_path, "ours", mlm_probability_schedule="linear", mlm_probability_end=0.3)
    by_seconds = _race(cache, entry, "--seeds", "1")["ours/tiny", "seconds"]
    monkeypatch.setitem(race.LIMITS, "flops", by_seconds["flops"][0] * 2)
    row = _race(cache, entry, "--seeds", "1", "--limit", "flops")["ours/tiny", "flops"]
    assert row["recipe"]["max_steps"] == 16
    assert row["flops"][0] == pytest.approx(race.LIMITS["flops"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_trainer_does_the_same_work(optimizer: str, tmp_path: Path, cache: Path) -> None:
    """With the same optimizer and schedule it learns as much in as many updates, by other masks and another order."""
    many = {"optimizer": optimizer, "max_steps": 100, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
    entries = [_entry(tmp_path, loop, **many) for loop in ("ours", "trainer", "tuned_trainer")]
    rows = _race(cache, *entries, "--seeds", "2")
    ours, stock, tuned = (rows[f"{loop}/tiny", "seconds"] for loop in ("ours", "trainer", "tuned_trainer"))
    scores = [statistics.mean(row["bits_per_byte"]) for row in (ours, stock, tuned)]
    assert max(scores) < 1.15 * min(scores)
    assert tuned["flops"][0] < 0.9 * stock["flops"][0]  # without the head on tokens that are not masked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ours/nope"], "entry='ours/nope' is none of .*ours/muon.*, nor a file in a folder named as theirs"),
        (["README.md"], "entry='README.md'"),
        (["ours/muon", "--replay"], "the ledger has no result of 'ours/muon' by seconds: race it first"),
        (["ours/muon", "--limit", "flops"], "the ledger has no result of 'ours/muon' by seconds"),
        (["ours/muon", "--seeds", "0"], "seeds=0 must be 1 or more"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _race(cache, *words)
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error


@pytest.mark.slow  # the package comes from the index that pip uses
def test_the_text_is_the_pinned_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = text.write_text(tmp_path)
    assert [len(path.read_text().splitlines()) for path in (train, held_out)] == [600, 40]
    monkeypatch.setattr(text, "_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="cannot be had"):
        text.write_text(tmp_path)
