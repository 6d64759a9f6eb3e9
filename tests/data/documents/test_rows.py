"""What tells a source from another: the content on any machine, and on this one whatever has changed a file."""

import io
import os
import shutil
from pathlib import Path

import datasets
import pytest

from data.config import DataConfig
from data.documents import files, sources
from data.documents.documents import Documents
from data.documents.sources import find_source, open_rows


def test_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.txt").write_text(f"some text {i}\n" * (i * 10_000))

    def identity(name: str) -> str:
        return files.identity(tuple(str(tmp_path / name / f"{i}.txt") for i in range(3)))

    assert identity("here") == identity("there")
    times = (tmp_path / "there" / "2.txt").stat()
    with (tmp_path / "there" / "2.txt").open("r+") as file:  # in place: the size and the time stay
        file.write("other")
    os.utime(tmp_path / "there" / "2.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity("here") != identity("there")


def test_the_identity_of_much_text_is_that_of_pieces_and_of_all_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MB in files of many sizes, hashed by 64 pieces of 256 bytes."""
    monkeypatch.setattr(files, "_HASHED_WHOLE", 1000)
    monkeypatch.setattr(files, "_PIECE", 256)
    monkeypatch.setattr(files, "_NUM_PIECES", 64)
    sizes = [1, 400_000, 0, 100, 100, 16_384, 600_000, 32_000, 7]
    paths = tuple(str(tmp_path / f"{i}.txt") for i in range(len(sizes)))
    for path, size in zip(paths, sizes, strict=True):
        Path(path).write_bytes(os.urandom(size))
    read: list[int] = []
    first = files.identity(paths)

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(size or 0)
            return super().read(size)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open_raw", Counted)
        assert files.identity(paths) == first
    assert 60 <= len(read) <= 66
    for path in (paths[1], paths[6]):
        content = Path(path).read_bytes()
        Path(path).write_bytes(bytes(18_000) + content[18_000:])  # longer than from one piece to the end of the next
        assert files.identity(paths) != first
        Path(path).write_bytes(content)
        assert files.identity(paths) == first
    Path(paths[8]).write_bytes(bytes(8))
    assert files.identity(paths) != first  # the size of each counts


def test_a_copy_with_the_same_time_and_size_is_another_version(tmp_path: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("one")
    other.write_text("two")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    first = files.version(str(path))
    assert files.version(str(path)) == first
    shutil.copy2(other, path)  # as cp -p
    assert path.stat().st_mtime_ns == other.stat().st_mtime_ns
    assert files.version(str(path)) != first


@pytest.mark.parametrize("split", ["train", "train[1:3]", "train[10%:21%]", "train[-3:]", "train[:500]"])
@pytest.mark.parametrize("flat", [False, True])
def test_what_datasets_downloads_is_read_as_datasets_reads_it(
    split: str, flat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a part of it, and a column of the very name of a dotted path. A folder stands in for the Hub."""
    table = datasets.Dataset.from_list([{"answers": {"text": [f"a{i}", f"b{i}"]}, "n": i} for i in range(50)])
    (table.flatten() if flat else table).to_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(sources, "_local_files", lambda name: None)
    rows, part = open_rows(find_source(str(tmp_path), DataConfig()), split, is_endless=False)
    assert {"answers.text", "n"} <= rows.columns()
    texts = [text for batch in Documents(rows, "folder", "answers.text", part).texts() for text in batch]
    expected = datasets.load_dataset(str(tmp_path), split=split)
    assert texts == [f"a{i} b{i}" for i in expected["n"]]
