"""The guide's recipe as it stands, from a Hub: the real client against a stand-in on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import serve

ROOT = Path(__file__).parents[2]


def _run(endpoint: str, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "launch.train", "--recipe", "eli5", "--cache_dir", str(tmp_path / "cache")]
    return subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run"), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_guides_recipe_from_the_hub(eli5_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """Dataset, model and tokenizer come by the recipe's own ids; only the block and the length are smaller."""
    repositories = {
        "datasets/dany0407/eli5_category": eli5_folder,
        "models/distilbert/distilroberta-base": model_folder,
    }
    with serve(repositories) as (endpoint, requests):
        done = _run(endpoint, tmp_path, "--block_size", "16", "--max_steps", "2", "--logging_steps", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert any("eli5_category/resolve" in line and line.endswith("train.jsonl") for line in requests)
    assert any("distilroberta-base/resolve" in line and line.endswith("model.safetensors") for line in requests)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--dataset", "nobody/nothing"],
            "dataset='nobody/nothing' is no local file or folder, and the Hub did not give it",
        ),
        (["--dataset_revision", "missing"], "dataset='dany0407/eli5_category'"),
        (["--model_name_or_path", "nobody/nothing"], "'nobody/nothing' cannot be loaded"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_line(
    words: list[str], message: str, eli5_folder: Path, tmp_path: Path
) -> None:
    with serve({"datasets/dany0407/eli5_category": eli5_folder}) as (endpoint, _):
        done = _run(endpoint, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
