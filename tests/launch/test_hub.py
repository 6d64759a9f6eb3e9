"""The guide's recipe as it stands, from a Hub: the real client against a stand-in on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files import write_texts
from tests.hub import Hub, serve

ROOT = Path(__file__).parents[2]


def _run(hub: Hub, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.train", "--recipe", "eli5", "--cache_dir", str(tmp_path / "cache")]
    return subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run"), *words],
        cwd=ROOT,
        env=hub.environment(tmp_path, token=None),
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
    with serve(repositories) as hub:
        done = _run(hub, tmp_path, "--block_size", "16", "--max_steps", "2", "--logging_steps", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert any("eli5_category/resolve" in line and line.endswith("train.jsonl") for line in hub.requests)
    assert any("distilroberta-base/resolve" in line and line.endswith("model.safetensors") for line in hub.requests)


_BOTH_WAYS = """
import sys
from data import DataConfig, open_documents
from data.documents import files

def texts(name, streaming, num_streams):
    train, held_out = open_documents(DataConfig(dataset=name, streaming=streaming, text_column="text"))
    for source in (*train, *held_out):
        assert all(path.startswith("hf://") == streaming for path in source.rows.paths)
    if streaming:
        assert all(files.version(path) for path in train[0].rows.paths)
        assert train[0].identity != held_out[0].identity
    return [
        [text for i in range(n) for batch in source.batches(n, i) for text in batch.texts]
        for source, n in ((train[0], num_streams), (held_out[0], 1))
    ]

for name in sys.argv[1:]:
    streamed = texts(name, True, 3)
    assert streamed == texts(name, False, 1), name
    assert list(map(len, streamed)) == [200, 20]
"""


def test_streaming_from_the_hub_gives_the_texts_of_the_cached_way(tmp_path: Path) -> None:
    """Three streams, each from its own place in the file; evaluation too, without a download of the data set."""
    repositories = {}
    for name in ("a.jsonl", "a.parquet"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        for split, size in (("train", 200), ("validation", 20)):
            write_texts(folder / f"{split}{Path(name).suffix}", [f"{split} {i}" for i in range(size)])
        repositories[f"datasets/user/{folder.name}"] = folder
    with serve(repositories) as hub:
        command = [sys.executable, "-c", _BOTH_WAYS, *(name.removeprefix("datasets/") for name in repositories)]
        done = subprocess.run(
            command, cwd=ROOT, env=hub.environment(tmp_path, token=None), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    for name in ("a-jsonl/resolve", "a-parquet/resolve"):
        assert any(name in line and line.startswith("GET") for line in hub.requests)


@pytest.mark.slow
def test_a_run_streams_from_the_hub(eli5_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    repositories = {
        "datasets/dany0407/eli5_category": eli5_folder,
        "models/distilbert/distilroberta-base": model_folder,
    }
    words = [
        "--streaming",
        "true",
        "--dataset_split",
        "train",
        "--block_size",
        "16",
        "--max_steps",
        "2",
        "--dataloader_num_workers",
        "1",
    ]
    with serve(repositories) as hub:
        done = _run(hub, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "streaming dany0407/eli5_category in 16 logical streams" in done.stdout
    assert not list((tmp_path / "hf").rglob("*.arrow"))  # nothing was downloaded whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--dataset", "nobody/nothing"],
            "dataset='nobody/nothing' is no local file or folder, and the Hub did not give it",
        ),
        pytest.param(["--dataset_revision", "missing"], "dataset='dany0407/eli5_category'", marks=pytest.mark.slow),
        pytest.param(
            ["--model_name_or_path", "nobody/nothing"], "'nobody/nothing' cannot be loaded", marks=pytest.mark.slow
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_line(
    words: list[str], message: str, eli5_folder: Path, tmp_path: Path
) -> None:
    with serve({"datasets/dany0407/eli5_category": eli5_folder}) as hub:
        done = _run(hub, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
