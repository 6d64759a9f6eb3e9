"""What streaming holds in memory does not grow with the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launchers import ROOT

_SCRIPT = """
import resource, sys
from data import DataConfig, open_documents, open_tokenizer
from tests.data.test_streaming import corpus_of, loader_of

small, path = sys.argv[1:]
words = {"streaming": True, "eval_fraction": 1e-9, "block_size": 128, "cache_dir": small + ".cache"}
trained = DataConfig(dataset=small, train_tokenizer=True, vocab_size=300, **words)
tokenizer = open_tokenizer(trained, open_documents(trained)[0], None)
loader = loader_of(corpus_of(DataConfig(dataset=path, **words), tokenizer))
assert sum(1 for _ in loader.steps(0, 200)) == 200
loader.state()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2))
"""


def _write(path: Path, size: int) -> Path:
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            file.write(json.dumps({"id": number, "text": f"{number} " + "some words of a text " * 100}) + "\n")
            number += 1
    return path


@pytest.mark.slow
def test_200_steps_from_200_mb_need_little_more_memory_than_from_2_mb(tmp_path: Path) -> None:
    small, large = _write(tmp_path / "small.jsonl", 2_000_000), _write(tmp_path / "large.jsonl", 200_000_000)
    peaks = []
    for path in (small, large):
        command = [sys.executable, "-c", _SCRIPT, str(small), str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    print(f"peak of memory: {peaks[0]} MB from a file of 2 MB, {peaks[1]} MB from one of 200 MB")
    assert peaks[1] < peaks[0] + 100
