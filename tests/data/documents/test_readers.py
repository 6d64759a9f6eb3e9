"""Ranges together read each row once, from any position on; a row that cannot be read says so, and harms no other."""

import csv
import gzip
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import BlockCounts, DataConfig, DataError, Documents, build_blocks, open_documents
from data.documents import files, readers
from data.documents import rows as rows_module
from data.documents.ranges import Range, Row
from data.documents.rows import FileRows
from tests.files import write_texts, zstd
from tests.launchers import ROOT

ROWS = [f"row {i} " + "x" * (i % 7 * 20) for i in range(57)]
LINE = st.one_of(
    st.sampled_from([b"", b" ", b"\t", b"\r", b"\xef\xbb\xbf", b"\xef\xbb\xbftext", b"y" * 5000]),
    st.text(max_size=12).map(lambda text: text.replace("\n", " ").encode("utf-8", "replace")),
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b" ")),
)


def parts(path: Path, num_streams: int) -> list[Range]:
    """What all streams read, in order."""
    rows = FileRows((str(path),))
    return [part for stream in range(num_streams) for part in rows.ranges(num_streams, stream)]


def rows_of(path: Path, num_streams: int, column: str = "text") -> list[Row]:
    return [row for part in parts(path, num_streams) for row in readers.read(part, part.begin, column)]


def texts(rows: list[Row]) -> list[Any]:
    return [row.value["text"] if row.value else None for row in rows]


NAMES = ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet", "a.arrow"]


def write(path: Path) -> Path:
    return write_texts(path, ROWS)


@settings(max_examples=60)
@given(lines=st.lists(LINE, max_size=12), ends=st.sampled_from([b"\n", b"\r\n"]), num_streams=st.integers(1, 9))
def test_ranges_of_any_lines_read_each_once_and_from_any_position_on(
    lines: list[bytes], ends: bytes, num_streams: int
) -> None:
    for last in (b"", ends):
        content = ends.join(lines) + last
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.txt"
            path.write_bytes(content)
            rows = rows_of(path, num_streams)
            wanted = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
            assert len(rows) == len(wanted)
            for row, line in zip(rows, wanted, strict=True):
                try:
                    assert row.value == {"text": line.decode().rstrip("\r")}
                except UnicodeDecodeError:
                    assert row.problem
                    assert row.problem.startswith("not UTF-8")
                # What a message says of the row: the line that it is in.
                assert content.startswith(line, row.begin) or content.startswith(b"\xef\xbb\xbf" + line, row.begin)
                where = FileRows((str(path),)).place(Range(str(path), 0, sys.maxsize), row.begin)
                assert where == f"a.txt, line {content[: row.begin].count(10) + 1}"
            for part in parts(path, num_streams):
                here = list(readers.read(part, part.begin, ""))
                for i, row in enumerate(here):
                    assert list(readers.read(part, row.position, "")) == here[i + 1 :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_streams", [1, 2, 5, 16, 100])
def test_streams_of_every_format_read_each_row_once(name: str, num_streams: int, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    rows = rows_of(path, num_streams)
    assert sorted(texts(rows)) == sorted(ROWS)
    if name in ("a.txt", "a.jsonl", "a.parquet"):
        assert texts(rows) == ROWS  # in order: cut, not dealt out
    for part in parts(path, num_streams)[:5]:
        here = list(readers.read(part, part.begin, "text"))
        assert all(row.value is not None and ROWS.index(row.value["text"]) % part.every == part.which for row in here)
        for i, row in enumerate(here):
            assert list(readers.read(part, row.position, "text")) == here[i + 1 :]


@pytest.mark.parametrize(
    ("name", "num_files", "num_streams"), [("a.jsonl", 3, 7), ("a.parquet", 5, 2), ("a.csv", 5, 3)]
)
def test_several_files_are_divided_too(name: str, num_files: int, num_streams: int, tmp_path: Path) -> None:
    paths = tuple(str(write_texts(tmp_path / f"{i}{name}", [f"{i} {row}" for row in ROWS])) for i in range(num_files))
    rows = FileRows(paths)
    found = [
        row.value["text"]
        for stream in range(num_streams)
        for part in rows.ranges(num_streams, stream)
        for row in readers.read(part, part.begin, "text")
        if row.value
    ]
    assert sorted(found) == sorted(f"{i} {row}" for i in range(num_files) for row in ROWS)


def test_a_range_of_parquet_reads_its_own_row_groups_alone(tmp_path: Path) -> None:
    """Of 6 groups of 10 rows, every page but those of the third is destroyed; the third is still read."""
    path = write(tmp_path / "a.parquet")
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (0, 1, 3, 4, 5):
        column = metadata.row_group(group).column(0)
        first = column.dictionary_page_offset or column.data_page_offset
        content[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert texts(list(readers.read(Range(str(path), 20, 30), 20, "text"))) == ROWS[20:30]
    assert texts(list(readers.read(Range(str(path), 0, 30), 25, "text"))) == ROWS[25:30]
    (row,) = readers.read(Range(str(path), 0, 57), 0, "text")
    assert row.problem
    assert "cannot be read as Parquet" in row.problem


def _offset_that_leads_out(path: Path, array: pa.Array) -> Path:
    table = pa.table({"text": array})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    offsets = struct.pack("<4i", 0, 3, 6, 9)
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, struct.pack("<4i", 0, 3, 2**30, 2**30 + 3)))
    return path


@pytest.mark.parametrize(
    "array",
    [pa.array(["one", "two", "six"]), pa.array([{"a": ["one"]}, {"a": ["two"]}, {"a": ["six"]}])],
    ids=["text", "nested"],
)
def test_an_arrow_file_that_points_out_of_itself_does_not_end_the_process(array: pa.Array, tmp_path: Path) -> None:
    """In a process of its own, because reading such a value is a segmentation fault."""
    path = _offset_that_leads_out(tmp_path / "a.arrow", array)
    script = (
        "import sys; from data.documents import readers, ranges\n"
        "for row in readers.read(ranges.Range(sys.argv[1], 0, 9), 0, 'text'): print(row)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("damaged: ") == 3


def test_a_text_of_arrow_that_is_not_utf8_harms_no_other(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff", b"fine"]).view(pa.string())
    for values in (bad, pa.ListArray.from_arrays([0, 1, 2, 3], bad)):
        table = pa.table({"text": values})
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
        rows = list(readers.read(Range(str(tmp_path / "a.arrow"), 0, 3), 0, "text"))
        assert [row.problem is None for row in rows] == [True, False, True]
        assert "not UTF-8" in str(rows[1].problem)


def test_a_damaged_group_of_parquet_is_named_by_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    column = pq.read_metadata(path).row_group(3).column(0)
    content = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first : first + 8] = b"\xff" * 8
    path.write_bytes(content)
    *fine, damaged = readers.read(Range(str(path), 0, 57), 0, "text")
    assert texts(fine) == ROWS[:30]
    assert damaged.problem
    assert damaged.begin == 30


def test_an_error_of_the_disk_is_no_damage(tmp_path: Path) -> None:
    """Else --on_bad_row skip would pass over the rest of a file because the network broke."""
    for name in NAMES:
        path = write(tmp_path / name)
        part = parts(path, 1)[0]
        path.unlink()
        with pytest.raises(FileNotFoundError):
            list(readers.read(part, part.begin, "text"))


def test_an_array_that_is_too_long_to_be_held_is_refused_and_lines_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_LONGEST_JSON", 1024)  # for 2**30
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 1000}]))
    (tmp_path / "longer.json").write_text(json.dumps([{"text": "x" * 1020}]))
    (tmp_path / "lines.json").write_text('{"text": "first"}\n' + json.dumps({"text": "x" * 1020}))
    assert texts(rows_of(tmp_path / "a.json", 1)) == ["x" * 1000]
    assert texts(rows_of(tmp_path / "lines.json", 1)) == ["first", "x" * 1020]
    (row,) = rows_of(tmp_path / "longer.json", 1)
    assert (row.value, row.begin, row.position) == (None, 0, sys.maxsize)
    assert str(row.problem).endswith(": more than 1,024 characters in one piece: make it one object a line (.jsonl)")


@settings(max_examples=60)
@given(content=st.binary(max_size=300), frames=st.integers(1, 3), cut=st.integers(1, 20), size=st.integers(1, 64))
def test_a_zst_file_is_read_across_frames_and_never_ends_early_in_silence(
    content: bytes, frames: int, cut: int, size: int
) -> None:
    frame = zstd(content)
    whole = frame * frames

    def read(packed: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.zst"
            path.write_bytes(packed)
            with files.open_file(str(path)) as file:
                return b"".join(iter(lambda: file.read(size), b""))

    assert read(whole) == content * frames
    with pytest.raises(OSError, match="Truncated"):
        read(whole[: -min(cut, len(frame) - 1)])


def test_a_large_zst_file_gives_its_content(tmp_path: Path) -> None:
    content = "".join(f"line {i}\n" for i in range(50_000)).encode()
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd(content))
    (part,) = parts(path, 1)
    assert texts(list(readers.read(part, 0, "")))[::10_000] == [f"line {i}" for i in range(0, 50_000, 10_000)]
    path.write_bytes(zstd(content)[:-100])
    *fine, damaged = readers.read(part, 0, "")
    assert texts(fine) == content.decode().splitlines()[: len(fine)]
    assert len(fine) > 10_000
    assert damaged.problem
    assert "damaged from here on" in damaged.problem
    assert damaged.begin == len(fine)


def _jsonl_with(line: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        lines = [b'{"text": "fine 0"}', line, b"", b'{"text": "fine 1"}']
        (folder / "a.jsonl").write_bytes(b"\n".join(lines))

    return make


def _truncated(compress: Callable[[bytes], bytes], name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        content = "".join(f"fine {i} {'z' * (i % 50)}\n" for i in range(50_000)).encode()
        (folder / name).write_bytes(compress(content)[:-60])

    return make


def _parquets(*columns: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for i, column in enumerate(columns):
            pq.write_table(pa.table({column: [f"fine {i}"], "n": [1]}), folder / f"{i}.parquet")

    return make


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _parquet_of(values: pa.Array) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table({"text": values}), folder / "a.parquet")


BAD = {
    "null": (_jsonl_with(b'{"text": null}'), r"a\.jsonl, line 2: text_column='text' holds no text: None", 2),
    "number": (_jsonl_with(b'{"text": 3}'), r"a\.jsonl, line 2: text_column='text' holds no text: 3", 2),
    "missing": (_jsonl_with(b'{"other": "x"}'), r"a\.jsonl, line 2: text_column='text' holds no text: None", 2),
    "utf8": (_jsonl_with(b'{"text": "\xff"}'), r"a\.jsonl, line 2: not UTF-8 \(byte 10 of the line\)", 2),
    "surrogate": (_jsonl_with(rb'{"text": "\ud800"}'), r"a\.jsonl, line 2: text_column='text' holds half", 2),
    "array": (_jsonl_with(b"[1, 2]"), r"a\.jsonl, line 2: not a JSON object: \[1, 2\]", 2),
    "broken": (_jsonl_with(b'{"text": "x'), r"a\.jsonl, line 2: not JSON: ", 2),
    "deep": (_jsonl_with(b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"), r"line 2: not JSON .*nested too", 2),
    "deep list": (_jsonl_with(b'{"text": ' + b"[" * 700 + b"3" + b"]" * 700 + b"}"), r"line 2: text_column=.*holds", 2),
    "deep array": (_jsonl_with(b"[" * 800 + b"]" * 800), r"a\.jsonl, line 2: not a JSON object: \[\[\[", 2),
    "gzip": (_truncated(gzip.compress, "a.txt.gz"), r"a\.txt\.gz, line \d{4,}: the file is damaged", None),
    "zst": (_truncated(zstd, "a.txt.zst"), r"a\.txt\.zst, line \d{4,}: the file is damaged", None),
    "not gzip": (
        _file("a.jsonl.gz", gzip.compress(b'{"text": "fine"}\n') + b"\x1f\x8bno gzip at all"),
        r"a\.jsonl\.gz, line 2: the file is damaged",
        1,
    ),
    "schema": (_parquets("text", "body"), r"1\.parquet, row 0: the file has no column 'text'; it has: body, n", 1),
    "parquet null": (_parquet_of(pa.array(["fine", None])), r"a\.parquet, row 1: text_column='text' holds no text", 1),
    "parquet utf8": (
        _parquet_of(pa.array([b"fine", b"\xff"]).view(pa.string())),
        r"a\.parquet, row 1: not UTF-8",
        1,
    ),
    "csv cells": (_file("a.csv", b"n,text\n1,fine\n2\n3,fine"), r"a\.csv, row 1: 1 field where the header names 2", 2),
    "csv utf8": (_file("a.csv", b'n,text\n1,"fine\nfine"\n2,\xff\n'), r"a\.csv, row 1: not UTF-8 \(line 4\)", 1),
    "json": (_file("a.json", b'[{"text": "fine"}, 3]'), r"a\.json, row 1: not a JSON object: 3", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_with_one_line_or_is_passed_over(name: str, tmp_path: Path) -> None:
    make, message, num_kept = BAD[name]
    make(tmp_path)
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9))
    with pytest.raises(DataError, match=message) as caught:
        list(train.texts())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9, on_bad_row="skip"))
    batches = list(train.batches())
    assert sum(batch.num_bad for batch in batches) == 1
    kept = [text for batch in batches for text in batch.texts]
    assert all(text.startswith("fine") for text in kept)
    assert len(kept) == num_kept if num_kept is not None else len(kept) > 10_000  # all that came before the damage


def test_bad_rows_are_counted_in_the_blocks(tokenizer: Any, data_config: DataConfig, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "one two three"}), "[]", json.dumps({"text": 7}), json.dumps({"text": "four five"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = DataConfig(
        dataset=str(tmp_path / "a.jsonl"), eval_fraction=1e-9, on_bad_row="skip", block_size=4, cache_dir=str(tmp_path)
    )
    counts: BlockCounts = build_blocks(open_documents(config)[0], tokenizer, config).counts
    assert (counts.documents, counts.bad_rows) == (2, 2)


def test_passing_over_bad_rows_does_not_read_the_file_again_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a line is known by reading up to it: only the message that stops the run needs it."""
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + '{"text": 1}\n' * 10)
    monkeypatch.setattr(FileRows, "place", lambda *_: pytest.fail("looked for a line's number"))
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9, on_bad_row="skip"))
    assert [batch.num_bad for batch in train.batches()] == [10]


@pytest.mark.parametrize(("name", "row"), [("a.jsonl", 20), ("a.jsonl.gz", 20), ("a.parquet", 20), ("a.csv", 20)])
@pytest.mark.parametrize("num_streams", [1, 3, 7])
def test_a_bad_row_is_named_rightly_in_every_stream(name: str, row: int, num_streams: int, tmp_path: Path) -> None:
    """Blank lines come before it, and a stream's range may begin in the middle of a line."""
    path = write(tmp_path / name)
    if "jsonl" in name:
        lines = [json.dumps({"text": text}) for text in ROWS]
        lines[row - 2 : row + 1] = ["", "", "{}"]
        content = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        where = f"{name}, line {row + 1}:"
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": [None if i == row else text for i, text in enumerate(ROWS)]}), path)
        where = f"{name}, row {row}:"
    else:
        with path.open("w", newline="") as file:
            rows = [[str(i)] if i == row else [str(i), text] for i, text in enumerate(ROWS)]
            csv.writer(file).writerows([["n", "text"], *rows])
        where = f"{name}, row {row}:"
    (train,), _ = open_documents(DataConfig(dataset=str(path), eval_fraction=1e-9))
    messages = []
    for stream in range(num_streams):
        try:
            list(train.batches(num_streams, stream))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert where in messages[0]


def _nested(path: Path) -> Path:
    return _write_rows(path, [{"answers": {"text": ["a", "b"]}, "turns": [{"say": "c"}, {"say": "d"}]}])


def _write_rows(path: Path, values: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(values), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(values)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(values))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(values[0]), *(list(value.values()) for value in values)])
    else:
        path.write_text("\n".join(map(json.dumps, values)))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_nested_columns_of_every_format(name: str, tmp_path: Path) -> None:
    path = _nested(tmp_path / name)
    assert FileRows((str(path),)).columns() >= {"answers", "answers.text", "turns", "turns.say"}
    for column, text in (("answers.text", "a b"), ("turns.say", "c d")):
        config = DataConfig(dataset=str(path), text_column=column, eval_fraction=1e-9)
        (train,), _ = open_documents(config)
        assert list(train.texts()) == [[text]]


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_a_column_of_the_very_name_wins_over_the_nested_path(name: str, num_streams: int, tmp_path: Path) -> None:
    """As the guide's ``flatten()`` names columns; below a dotted name the path goes on."""
    nested = {} if name == "a.csv" else {"answers": {"text": "not this"}, "deep.er": {"say.so": "c", "say": "d"}}
    path = _write_rows(tmp_path / name, [{"answers.text": f"a {i}", **nested} for i in range(9)])

    def texts_in(column: str | None) -> list[str]:
        (train,), _ = open_documents(DataConfig(dataset=str(path), text_column=column, eval_fraction=1e-9))
        batches = [batch for stream in range(num_streams) for batch in train.batches(num_streams, stream)]
        return sorted(text for batch in batches for text in batch.texts)

    assert texts_in("answers.text") == texts_in(None) == [f"a {i}" for i in range(9)]
    if nested:
        assert texts_in("deep.er.say") == ["d"] * 9
        assert texts_in("deep.er.say.so") == ["c"] * 9


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_counts_rows_in_every_format(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)

    def sliced(split: str) -> list[str]:
        (train,), _ = open_documents(DataConfig(dataset=str(path), dataset_split=split, eval_fraction=1e-9))
        return [text for batch in train.texts() for text in batch]

    assert sliced("train[-3:]") == ROWS[-3:]
    assert sliced("train[50%:]") == ROWS[round(57 / 2) :]


def test_an_empty_file_among_others_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text("")
    (tmp_path / "1.jsonl").write_text("\n\n")
    write(tmp_path / "2.jsonl")
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9))
    assert [text for batch in train.texts() for text in batch] == ROWS


def test_a_parquet_file_without_an_end_is_named(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.parquet")
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-20])
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9))
    with pytest.raises(DataError, match=r"1\.parquet cannot be read as Parquet"):
        list(train.texts())


def test_sizes_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each stream and pass anew, they would be thousands of requests to the Hub."""
    for i in range(3):
        write(tmp_path / f"{i}.parquet")
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9))
    asked: list[str] = []
    size = rows_module._size

    def counted(path: str) -> int:
        asked.append(path)
        return size(path)

    monkeypatch.setattr(rows_module, "_size", counted)
    for stream in range(4):
        list(train.batches(4, stream))
    assert len(asked) == 3


def test_a_position_at_the_end_reads_nothing_more(tmp_path: Path) -> None:
    """Behind the row that says that a file is damaged: it is not said, and counted, again."""
    _truncated(gzip.compress, "a.txt.gz")(tmp_path)
    (train,), _ = open_documents(DataConfig(dataset=str(tmp_path), eval_fraction=1e-9, on_bad_row="skip"))

    def last(documents: Documents) -> Iterator[int]:
        for batch in documents.batches(at_once=(1, sys.maxsize)):
            if batch.num_bad:
                yield from (after.num_bad for after in documents.batches(cursor=batch.cursor))

    assert list(last(train)) == [0]
