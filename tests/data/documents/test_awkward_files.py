"""Text that is there is read, or named: folders and files as people have them, and what must come of each."""

import gzip
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, open_documents
from tests.files import zstd


class Case(NamedTuple):
    """A folder, and what reading it must give.

    Attributes:
        files: Content by name; a Path is where a link leads.
        texts: What is trained on, or a pattern of the one line that refuses.
        log: A pattern of the one line that names what is not read; '' for no line.
        dataset: Below the folder.
        settings: Of `DataConfig`.
    """

    files: dict[str, bytes | Path]
    texts: list[str] | str
    log: str = ""
    dataset: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})


def _arrow(*texts: str) -> bytes:
    table, sink = pa.table({"text": texts}), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _arrow_file(*texts: str) -> bytes:
    table, sink = pa.table({"text": texts}), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(*texts: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


SKIP = {"on_bad_row": "skip"}
PRETTY = json.dumps({"text": "one", "more": [1, {"a": 2}]}, indent=2).encode()
FOLDERS = {
    "a split's word in one name": Case(
        {"train-news.txt": b"a", "wiki.txt": b"b"}, r"wiki\.txt.*train-news\.txt.*glob such as .*/\*\.txt\'"
    ),
    "so read by a glob": Case({"train-news.txt": b"a", "wiki.txt": b"b"}, ["a", "b"], dataset="*.txt"),
    "a split's word in a folder": Case({"validation/a.txt": b"a", "b.txt": b"b"}, r"b\.txt.*validation/a\.txt"),
    "two splits' words": Case({"train_test.txt": b"a", "b.txt": b"b"}, r"train_test\.txt.*test and train"),
    "splits are told": Case(
        {"train-news.txt": b"a", "test-pilot.txt": b"b"}, ["a"], r"by name.* test \(test-pilot\.txt\), train \(train-n"
    ),
    "file in a folder of a split": Case({"train/dev-blog.txt": b"a", "val/b.txt": b"b"}, ["a"], "by name"),
    "data sheets beside": Case(
        {"train.jsonl": b'{"text": "a"}', "LICENSE.txt": b"x", "README.md": b"y", "state.json": b"{}"},
        ["a"],
        r"not read: LICENSE\.txt, state\.json, README\.md$",
    ),
    "what could be read is named first": Case(
        {"train.txt": b"a", "wiki.csv": b"text\nb", **{f"{i}.rst": b"" for i in range(9)}},
        ["a"],
        r"not read: wiki\.csv, 0",
    ),
    "a dangling link of a glob of folders": Case(
        {"a.txt": b"a", "x/b.txt": Path("gone.txt")}, ["a"], r"not read: .*/x/b\.txt$", dataset="**"
    ),
    "kinds that are not known": Case({"a.txt": b"a", "b.md": b"b", "c.txt.bz2": b"c"}, ["a"], r"b\.md, c\.txt\.bz2$"),
    "many of them": Case({"a.txt": b"a", **{f"{i}.rst": b"" for i in range(9)}}, ["a"], r"0\.rst, .*4\.rst and 4 more"),
    "upper case": Case({"A.TXT": b"a", "B.Text": b"b", "C.TXT.GZ": gzip.compress(b"c")}, ["a", "b", "c"]),
    "ndjson": Case({"a.ndjson": b'{"text": "a"}', "b.JSONL": b'{"text": "b"}'}, ["a", "b"]),
    "a dangling link": Case({"a.txt": b"a", "b.txt": Path("gone.txt")}, ["a"], r"not read: b\.txt"),
    "a dangling link of a glob": Case(
        {"a.txt": b"a", "b.txt": Path("gone.txt")}, ["a"], r"not read: .*b\.txt", dataset="*.txt"
    ),
    "a link to a folder": Case({"x/a.txt": b"a", "set/b": Path("../x")}, ["a"], dataset="set"),
    "a link in a circle": Case({"x/a.txt": b"a", "x/b": Path("../x")}, ["a"]),
    "a folder that a glob meets": Case({"a.txt": b"a", "b/c.txt": b"c"}, ["a"], r"not read: .*/b$", dataset="*"),
    "cache folders": Case({"a.txt": b"a", "__pycache__/b.txt": b"b"}, ["a"], "not read: __pycache__"),
    "hidden": Case({"a.txt": b"a", ".b.txt": b"b", ".git/c.txt": b"c"}, ["a"]),
    "two formats": Case({"a.txt": b"a", "b.csv": b"text\nb"}, r"of one format .* a\.txt is \.txt, b\.csv is \.csv"),
    "two colons": Case({"a::b.txt": b"a"}, ["a"], dataset="a::b.txt"),
    "two colons in a folder": Case({"a::b.jsonl": b'{"text": "a"}', "c.jsonl": b'{"text": "b"}'}, ["a", "b"]),
    "glob characters in a folder": Case({"corpus[v2]/a.txt": b"a"}, ["a"], dataset="corpus[v2]"),
    "a glob in it": Case({"corpus[v2]/a.txt": b"a"}, ["a"], dataset="corpus[v2]/*.txt"),
    "a percent sign and a space": Case({"50% of it/a b.txt": b"a"}, ["a"], dataset="50% of it"),
}
FILES = {
    "parquet.gz": Case({"a.parquet.gz": gzip.compress(_parquet("a"))}, r"\.parquet only as it is\), but a\.parquet"),
    "parquet.zst": Case(
        {"a.parquet.zst": zstd(_parquet("a"))}, r"a\.parquet\.zst .*\.parquet only as it is", dataset="a.parquet.zst"
    ),
    "parquet.zst beside": Case(
        {"a.parquet.zst": zstd(_parquet("a")), "b.parquet": _parquet("b")}, ["b"], r"not read: a\.parquet\.zst"
    ),
    "arrow.gz": Case({"a.arrow.gz": gzip.compress(_arrow("a", "b"))}, ["a", "b"]),
    "arrow.zst": Case({"a.arrow.zst": zstd(_arrow("a", "b"))}, ["a", "b"]),
    "arrow file": Case({"a.arrow": _arrow_file("a", "b")}, ["a", "b"]),
    "arrow file.gz": Case({"a.arrow.gz": gzip.compress(_arrow_file("a"))}, r"a\.arrow\.gz, row 0: .*unpack it"),
    "arrow file.zst": Case({"a.arrow.zst": zstd(_arrow_file("a"))}, r"a\.arrow\.zst, row 0: .*unpack it"),
    "csv with an open quote": Case({"a.csv": b'n,text\n1,a\n2,"b\n3,c\n'}, r"a\.csv, row 1: .*lines 3 to 4.*quote"),
    "passed over": Case({"a.csv": b'n,text\n1,a\n2,"b\n3,c\n'}, ["a"], settings=SKIP),
    "csv with an open quote before others": Case(
        {"a.csv": b'n,text\n1,a\n2,"b\n3,c\n4,"d"\n5,e\n'}, ["a", "e"], settings=SKIP
    ),
    "tsv with a bare quote": Case({"a.tsv": b'n\ttext\n1\t"a" said b\n2\tc\n'}, r"a\.tsv, row 0: not CSV \(line 2\)"),
    "csv with a bare comma": Case({"a.csv": b"n,text\n1,a\n2,b, c\n3,d\n"}, r"a\.csv, row 1: 3 fields .* 2 \(line 3\)"),
    "so passed over": Case({"a.csv": b"n,text\n1,a\n2,b, c\n3,d\n"}, ["a", "d"], settings=SKIP),
    "csv with a field too few": Case({"a.csv": b"text,n\na,1\nb\n"}, r"a\.csv, row 1: 1 field where .* 2"),
    "csv with a name twice": Case({"a.csv": b"text,text\na,b\n"}, r"a\.csv, row 0: .*'text' twice"),
    "csv with blank lines": Case({"a.csv": b"n,text\n\n1,a\n\n2,b\n\n"}, ["a", "b"]),
    "csv with lines in a field": Case({"a.csv": b'n,text\n1,"a\nb ""c"""\n'}, ['a\nb "c"']),
    "json object over lines": Case({"a.json": PRETTY}, ["one"]),
    "json objects over lines": Case({"a.json": PRETTY + b"\n" + PRETTY + b"\n"}, ["one", "one"]),
    "json object in a line": Case({"a.json": b'{"text": "a"}'}, ["a"]),
    "json lines": Case({"a.json": b'{"text": "a"}\n{"text": "b"}\n'}, ["a", "b"]),
    "json lines, one bad": Case({"a.json": b'{"text": "a"}\n{"text: 1}\n{"text": "b"}\n'}, ["a", "b"], settings=SKIP),
    "json lines, the first bad": Case({"a.json": b'{"text: 1}\n{"text": "b"}\n'}, ["b"], settings=SKIP),
    "json lines behind a blank one": Case(
        {"a.json": b'\xef\xbb\xbf\n \n{"text": "a"}\n[]\n{"text": "b"}\n'}, ["a", "b"], settings=SKIP
    ),
    "json array cut short": Case({"a.json": b'[{"text": "a"}, {"text": "b"'}, r"a\.json, row 0: not JSON that"),
    "json array without its end": Case({"a.json": b'[{"text": "a"}'}, r"a\.json, row 0: not JSON .*: Expecting"),
    "json array and more": Case({"a.json": b'[{"text": "a"}] {"text": "b"}'}, r"a\.json, row 0: not JSON .*Extra data"),
    "json array, no comma": Case({"a.json": b'[{"text": "a"} {"text": "b"}]'}, r"a\.json, row 0: not JSON"),
    "json array, comma at the end": Case({"a.json": b'[{"text": "a"},]'}, r"a\.json, row 0: not JSON"),
    "json array cut short, passed over": Case({"a.json": PRETTY, "b.json": b'[{"text": "b"},'}, ["one"], settings=SKIP),
    "json objects, the second cut short": Case({"a.json": PRETTY + PRETTY[:-9]}, r"a\.json, row 0: not JSON"),
    "json array of numbers": Case({"a.json": b"[1234567, 2]"}, r"a\.json, row 0: not a JSON object: 1234567"),
    "json array of nothing": Case({"a.json": b" [ ] ", "b.json": b'[{"text": "b"}]'}, ["b"]),
    "json with a mark": Case({"a.json": b'\xef\xbb\xbf[{"text": "\xc3\xbc"}]'}, ["ü"]),
    "json not UTF-8": Case({"a.json": b'[{"text": "a"}, {"text": "\xff"}]'}, r"a\.json, row 0: not JSON .*'utf-8'"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*FOLDERS.values(), *FILES.values()], ids=[*FOLDERS, *FILES])
def test_text_that_is_there_is_read_or_named(case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content)

    def texts() -> list[str]:
        held_out = {} if case.files.keys() & {"val/b.txt"} else {"eval_fraction": 1e-9}
        config = DataConfig(dataset=str(tmp_path / case.dataset), **held_out, **case.settings)
        (train,), _ = open_documents(config)
        return sorted(text for batch in train.texts() for text in batch)

    if isinstance(case.texts, str):
        with pytest.raises(ValueError, match=case.texts) as caught:
            texts()
        assert "\n" not in str(caught.value)
    else:
        assert texts() == case.texts
        assert len(caplog.messages) == bool(case.log), caplog.messages
        for message in caplog.messages:
            assert re.search(case.log, message)
