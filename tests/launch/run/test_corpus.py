"""A resumed run uses the same blocks and tokenizer."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.launch.conftest import Train


def test_a_tokenizer_file_with_a_truncation_and_a_padding_does_not_stop_a_resumed_run(
    train: Train, model_folder: Path, tmp_path: Path
) -> None:
    """The first start tokenizes, a later one finds the blocks."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    words = ("--model_name_or_path", str(folder), "--cache_dir", str(tmp_path / "cache"), "--save_steps", "3")
    train(tmp_path / "run", *words)
    for _ in range(2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
        assert train(tmp_path / "run", *words, "--resume_from_checkpoint", "latest")[-1]["step"] == 6
    assert len(list((tmp_path / "cache" / "blocks").glob("*/blocks.json"))) == 2


def test_damaged_blocks_are_named_in_one_line_and_made_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--cache_dir", str(tmp_path / "cache"), "--max_steps", "2")
    first = train(tmp_path / "one", *words)
    damaged = sorted((tmp_path / "cache" / "blocks").glob("*/blocks.*"))
    for path in damaged:
        os.truncate(path, path.stat().st_size // 2)
    capsys.readouterr()
    again = train(tmp_path / "two", *words)
    assert again[-1]["eval_loss"] == first[-1]["eval_loss"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "is damaged and made again" in line]
    assert sorted(line.split()[0] for line in lines) == sorted({str(path.parent) for path in damaged})
