"""``mlm prepare`` makes all that training would make first, and makes nothing twice."""

from pathlib import Path

import pytest

from launch.prepare import main
from launch.train import main as train


@pytest.fixture
def words(eli5_folder: Path, tmp_path: Path) -> list[str]:
    return [
        *("--recipe", "quickstart", "--dataset", str(eli5_folder), "--vocab_size", "300", "--block_size", "16"),
        *("--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")),
    ]


def _files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_makes_what_training_then_finds(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    out = capsys.readouterr().out
    made = _files(tmp_path / "cache")
    assert len([path for path in made if path.name == "blocks.json"]) == 2
    assert [path.parent.name for path in made if path.parent.name == "tokenizers"]
    assert f"where    {tmp_path / 'cache'}\n" in out
    assert not (tmp_path / "run").exists()

    main(words)
    assert capsys.readouterr().out == out
    train([*words, "--dry_run"])
    counts = out.splitlines()[:2]
    assert counts[0].startswith("train ")
    assert counts[1].startswith("eval ")
    assert "\n".join(counts) in capsys.readouterr().out
    assert _files(tmp_path / "cache") == made


def test_a_cache_in_the_home_folder(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main([*words, "--cache_dir", "~/at_home"])
    assert f"where    {tmp_path / 'at_home'}\n" in capsys.readouterr().out
    assert len(list((tmp_path / "at_home" / "blocks").glob("*/blocks.json"))) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--dataset missing.txt", "no such file or folder"),
        ("--vocab_size 5", "vocab_size=5 must be at least"),
        ("--step 3", "unknown setting --step"),
        ("--dry_run", "unknown setting --dry_run"),
    ],
)
def test_a_wrong_word_is_one_clear_line(
    more: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, *more.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
