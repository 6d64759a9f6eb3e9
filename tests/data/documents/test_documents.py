"""Every kind of local source gives the same texts; every mistake is one clear line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from data import DataConfig, open_documents
from tests.files import zstd

TEXTS = ["one, 1", "two", "  three  ", "fünf", "six\u2028six"]


def _txt(path: Path) -> None:
    path.write_bytes("\n".join(TEXTS).encode())


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS))


def _json(path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in TEXTS]))


def _delimited(delimiter: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([["text", "n"], *([text, "1"] for text in TEXTS)])

    return write


def _parquet(path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(path)


def _arrow(path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(path.with_suffix(""))
    next(path.with_suffix("").glob("*.arrow")).rename(path)


WRITERS = {
    "a.txt": _txt,
    "a.jsonl": _jsonl,
    "a.json": _json,
    "a.csv": _delimited(","),
    "a.tsv": _delimited("\t"),
    "a.parquet": _parquet,
    "a.arrow": _arrow,
}


def _texts(**settings: object) -> list[str]:
    (train,), _ = open_documents(DataConfig(**{"eval_fraction": 1e-9, **settings}))  # type: ignore[arg-type]
    return [text for batch in train.texts() for text in batch]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert _texts(dataset=str(tmp_path / name)) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_files_are_read(tmp_path: Path, name: str, compression: str) -> None:
    WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    packed = gzip.compress(content) if compression == ".gz" else zstd(content)
    (tmp_path / f"{name}{compression}").write_bytes(packed)
    (tmp_path / name).unlink()
    assert _texts(dataset=str(tmp_path / f"{name}{compression}")) == TEXTS


def test_globs_folders_and_slices(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"part-{i}.txt").write_text(f"a{i}\nb{i}\n")
    everything = ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert _texts(dataset=str(tmp_path / "part-*.txt")) == everything
    assert _texts(dataset=str(tmp_path)) == everything
    assert _texts(dataset=str(tmp_path), dataset_split="train[1:3]") == ["b0", "a1"]
    assert _texts(dataset=str(tmp_path), dataset_split="train[:50%]") == ["a0", "b0", "a1"]


def test_file_names_in_a_folder_tell_the_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("learn\n")
    (tmp_path / "validation.txt").write_text("check\n")
    (train,), (evaluation,) = open_documents(DataConfig(dataset=str(tmp_path)))
    assert list(train.texts()) == [["learn"]]
    assert list(evaluation.texts()) == [["check"]]


def test_other_files_in_a_folder_and_hidden_folders_above_it_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("about")
    (folder / "make.py").write_text("print()")
    (folder / ".secret.txt").write_text("not this\n")
    (folder / "deep" / "a.txt").write_text("this\n")
    assert _texts(dataset=str(folder)) == ["this"]


def test_an_evaluation_dataset_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("learn\n")
    (tmp_path / "b.txt").write_text("check\n")
    (train,), (evaluation,) = open_documents(
        DataConfig(dataset=str(tmp_path / "a.txt"), eval_dataset=str(tmp_path / "b.txt"))
    )
    assert list(train.texts()) == [["learn"]]
    assert list(evaluation.texts()) == [["check"]]


def test_nested_columns_are_joined_by_a_space(tmp_path: Path) -> None:
    """As the guide flattens ELI5 and joins ``answers.text``."""
    rows = [
        {"title": "t", "answers": {"text": ["first", "second part"], "score": [1, 2]}},
        {"title": "u", "answers": {"text": ["x"], "score": [0]}},
    ]
    (tmp_path / "eli5.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _texts(dataset=str(tmp_path / "eli5.jsonl"), text_column="answers.text") == ["first second part", "x"]
    assert _texts(dataset=str(tmp_path / "eli5.jsonl")) == ["first second part", "x"]
    assert _texts(dataset=str(tmp_path / "eli5.jsonl"), text_column="title") == ["t", "u"]


def test_lists_of_structs_are_joined_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"turns": [{"say": "hello"}, {"say": "you"}]}) + "\n")
    assert _texts(dataset=str(tmp_path / "a.jsonl"), text_column="turns.say") == ["hello you"]


def test_the_held_out_part_depends_on_the_text_alone(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(2000)]
    (tmp_path / "a.txt").write_text("\n".join([*texts, *texts[:500]]))
    (tmp_path / "b.txt").write_text("\n".join(reversed(texts)))
    parts = {}
    for name in ("a.txt", "b.txt"):
        (train,), (evaluation,) = open_documents(DataConfig(dataset=str(tmp_path / name), eval_fraction=0.2))
        parts[name] = [{text for batch in side.texts() for text in batch} for side in (train, evaluation)]
    train, evaluation = parts["a.txt"]
    assert not train & evaluation
    assert train | evaluation == set(texts)
    assert parts["b.txt"] == [train, evaluation]
    assert abs(len(evaluation) - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n   \ntwo\n")
    assert _texts(dataset=str(tmp_path / "a.txt")) == ["one", "two"]


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_documents(DataConfig(dataset=str(tmp_path / "a.txt"), eval_fraction=0.5))[0][0].fingerprint

    (tmp_path / "a.txt").write_text("one\ntwo\n")
    first = fingerprint()
    assert fingerprint() == first
    (tmp_path / "a.txt").write_text("one\nthree\n")
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.txt", r"a\.txt, line 3: not UTF-8"),
        ("a.csv", r"a\.csv, row 1: not UTF-8 \(line 3\)"),
        ("a.txt.gz", r"a\.txt\.gz, line 3: not UTF-8"),
    ],
)
def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path: Path, name: str, where: str) -> None:
    path = tmp_path / name
    content = b"text\nfine\nbad \xff line\nfine\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=where):
        _texts(dataset=str(path))


def test_json_that_is_not_utf8_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "bad \xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not UTF-8"):
        _texts(dataset=str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, {"dataset": "{}/missing.txt"}, "no such file or folder"),
        ({}, {"dataset": "{}/*.txt"}, "no file matches"),
        ({}, {"dataset": "{}"}, r"the folder holds no file that can be read \(\.txt .*\.jsonl"),
        ({"a.txt": ""}, {"dataset": "{}/a.txt"}, "the file is empty"),
        ({"a.csv": "name,text\nx,y\n"}, {"dataset": "{}/a.csv", "text_column": "body"}, "the columns are: name, text"),
        ({"a.csv": "name,body\nx,y\n"}, {"dataset": "{}/a.csv"}, "with --text_column; the columns are: body, name"),
        ({"a.jsonl": '{"text": 1}'}, {"dataset": "{}/a.jsonl"}, "a.jsonl, line 1: text_column='text' holds no text: 1"),
        ({"a.csv": "n,text\n1,x\n2\n"}, {"dataset": "{}/a.csv"}, "a.csv, row 1: 1 field where the header names 2"),
        ({"a.jsonl": '{"text": "x"}\n{"text":'}, {"dataset": "{}/a.jsonl"}, "a.jsonl, line 2: not JSON: Expecting"),
        ({"a.txt": "x"}, {"dataset": "{}/a.txt", "dataset_split": "test"}, "no split 'test': it has train"),
        ({"a.txt": "x"}, {"dataset": "{}/a.txt", "dataset_split": "train[a:]"}, "cannot be read"),
        ({"a.txt": "x", "b.csv": "text\ny"}, {"dataset": "{}"}, r"files of one format .* a\.txt is \.txt, b\.csv is "),
        ({"a.txt": "x"}, {"dataset": "{}/a.txt", "eval_split": "dev", "eval_fraction": None}, "no split 'dev'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(
    tmp_path: Path, files: dict[str, str], settings: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    filled = {key: value.format(tmp_path) if value else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=message) as caught:
        _texts(**filled)
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_that_cannot_be_had_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="is no local file or folder, and the Hub did not give it"):
        _texts(dataset="nobody/nothing")


@pytest.mark.parametrize("streaming", [False, True])
def test_no_text_that_a_mixture_is_evaluated_on_is_trained_on(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One source has a validation split, half of which stands in the other's training text, and half of that in its."""
    texts = [f"document {i}" for i in range(400)]
    layout = {"a/train.txt": texts[:200], "a/validation.txt": texts[200:300], "b/b.txt": texts[100:400]}
    for name, lines in layout.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(lines))
    mixture = {str(tmp_path / "a"): 0.5, str(tmp_path / "b"): 0.5}
    train, evaluation = (
        {text for source in side for batch in source.texts() for text in batch}
        for side in open_documents(DataConfig(mixture=mixture, streaming=streaming))
    )
    assert evaluation
    assert not train & evaluation
    assert train | evaluation == set(texts)
    assert any("its validation split is not read" in message for message in caplog.messages)
    _, (evaluation_a,) = open_documents(DataConfig(dataset=str(tmp_path / "a")))
    assert list(evaluation_a.texts()) == [texts[200:300]]
