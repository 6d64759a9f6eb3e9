"""What streaming holds in memory does not grow with the file, nor with what a file says of itself."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files import zstd
from tests.launchers import ROOT

_SCRIPT = """
import resource, sys
from data import DataConfig, open_documents, open_tokenizer
from tests.data.batches.test_streaming import corpus_of, loader_of

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


_READ = """
import itertools, re, sys
from data import DataConfig, open_documents

def peak():  # ru_maxrss would begin with that of the process which started this one
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

path, num_streams = sys.argv[1], int(sys.argv[2])
before = peak()
(train,), _ = open_documents(DataConfig(dataset=path, eval_fraction=1e-9, on_bad_row="skip"))
streams = [train.batches(num_streams, stream) for stream in range(num_streams)]
texts = bad = 0
for batches in itertools.zip_longest(*streams):
    for batch in filter(None, batches):
        texts, bad = texts + len(batch.texts), bad + batch.num_bad
print(peak() - before, texts, bad)
"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def _growth(path: Path, num_streams: int = 1) -> list[int]:
    """MB that the peak of reading in turn all streams is above what was before; the texts, and the bad rows."""
    command = [sys.executable, "-c", _READ, str(path), str(num_streams)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@linux
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_small_file_with_much_in_it_takes_little_memory(ending: str, tmp_path: Path) -> None:
    """400 MB of lines in a file of 13 KB to 400 KB."""
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes((zstd if ending == "zst" else gzip.compress)((b"x" * 999_999 + b"\n") * 400))
    assert path.stat().st_size < 500_000
    growth, *found = _growth(path)
    assert growth < 40
    assert found == [400, 0]


@linux
def test_a_line_without_an_end_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(bytes(400_000_000) + b"\nfine\n"))
    growth, *found = _growth(tmp_path / "a.txt.zst")
    assert growth < 350  # a line of 128 MB is allowed
    assert found == [1, 1]


@linux
@pytest.mark.parametrize("is_array", [True, False])
def test_json_in_one_piece_is_held_once_for_all_streams(is_array: bool, tmp_path: Path) -> None:
    """16 streams of a file of 21 MB, which took 350 MB when each held all of its rows; it takes five times the file."""
    rows = [json.dumps({"id": i, "text": f"{i} " + "some words " * 60}, indent=2) for i in range(30_000)]
    (tmp_path / "a.json").write_text("[" + ",\n".join(rows) + "]" if is_array else "\n".join(rows))
    growth, *found = _growth(tmp_path / "a.json", 16)
    assert growth < 150
    assert found == [30_000, 0]
