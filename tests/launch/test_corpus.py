"""Blocks and tokenizer are the same ones when a run goes on."""

import json
import shutil
from pathlib import Path

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
