"""``mlm fill``: texts from words, files, pipes and a prompt; results for people and programs."""

import argparse
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, logging

from launch.fill_mask import main
from launch.terminal.fills import print_fills, target_words
from launch.terminal.texts import open_texts
from tests.conftest import sentences
from tests.launchers import ROOT
from tests.tokenizers import tokenizer_like
from train_loop import FillMask

TEXTS = [sentence.replace(" ", " <mask> ", 1) for sentence in sentences(70)]


@pytest.fixture
def words(model_folder: Path) -> list[str]:
    logging.set_verbosity_error()
    return ["--model", str(model_folder), "--top_k", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def answers(model_folder: Path) -> list[object]:
    return FillMask.from_pretrained(str(model_folder), device="cpu")(TEXTS, top_k=2)


def _lines(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines()]


def _same(shown: list[object], answers: list[object]) -> None:
    """Equal except for the rounding of scores, since the batches differ."""
    assert len(shown) == len(answers)
    for fills, expected in zip(shown, answers, strict=True):
        assert [{**f, "score": pytest.approx(f["score"], rel=1e-4)} for f in expected] == fills  # type: ignore


def test_words_are_a_table(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Both spellings of a mask; several masks one below the other; no bars outside a terminal."""
    main([*words, "the cat [MASK] on a mat", "the [MASK] sat on <mask> mat"])
    out = capsys.readouterr().out
    assert out.startswith("the cat <mask> on a mat\n  ")
    assert len(re.findall(r"^ +(\d+\.\d%|\de-\d\d)  .*the", out, flags=re.MULTILINE)) == 6
    assert len(out.splitlines()) == 2 + 2 + 6
    assert re.findall(r"^  mask \d$", out, flags=re.MULTILINE) == ["  mask 1", "  mask 2"]
    assert "[MASK]" not in out
    assert "█" not in out


def test_a_terminal_shows_bars(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main([*words, "the cat <mask>"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len({line.index("the cat") for line in lines}) == 1
    assert min(line.index("the cat") for line in lines) > 26
    print_fills("a <mask>", [{"score": share, "token_str": "cat", "sequence": "a cat"} for share in (0.0, 0.5, 1.0)])
    assert [line.count("█") for line in capsys.readouterr().out.splitlines()[1:]] == [0, 8, 16]


def test_no_line_is_wider_than_the_terminal(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long sentence, the part around the fill is shown."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    text = f"{'the cat sat ' * 5}<mask> mat{' and then' * 5}"
    main([*words, text])
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[:-2]) == text
    assert max(map(len, lines)) <= 80
    for line in lines[-2:]:
        *_, word, _ = re.split(" {2,}", line.strip())
        assert line.rpartition("  ")[2].startswith("…")
        assert re.search(rf"sat ?{re.escape(word)} mat.*…$", line)


def test_the_folder_of_a_run_is_its_model(
    words: list[str],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until the final model is there, it is the newest checkpoint's, and the log says so."""

    def answer(model: Path) -> str:
        main(["--model", str(model), *words[2:], "a <mask>"])
        return capsys.readouterr().out

    expected = answer(model_folder)
    for name in ("step-00000009", "step-00000010"):
        shutil.copytree(model_folder, tmp_path / "checkpoints" / name)
    for name in ("step-00000009/config.json", "step-00000011.aside/config.json", "step-00000012.tmp/config.json"):
        (tmp_path / "checkpoints" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).write_text("no model")
    assert answer(tmp_path) == expected
    (line,) = caplog.messages
    assert line.endswith("step-00000010 is used")
    shutil.copytree(model_folder, tmp_path / "model")
    assert answer(tmp_path) == expected
    assert caplog.messages == [line]


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz", "texts.jsonl", "texts.csv"])
def test_a_file_is_answered_in_lines(
    name: str, words: list[str], answers: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    columns: list[str] = []
    if ".txt" in name:
        content = "\n".join([*TEXTS[:50], "", *TEXTS[50:]])
    elif name.endswith(".jsonl"):
        content = "".join(json.dumps({"id": i, "a": {"text": text}}) + "\n" for i, text in enumerate(TEXTS))
        columns = ["--text_column", "a.text"]
    else:
        content = "id,body\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS))
        columns = ["--text_column", "body"]
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    main([*words, "--file", str(path), *columns])
    out, error = capsys.readouterr()
    _same(_lines(out), answers)
    assert error == ""
    main([*words, "--file", str(path), *columns, "--no-json"])
    assert capsys.readouterr().out.startswith(TEXTS[0])


def test_a_pipe_is_answered_in_lines(
    words: list[str], answers: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS).replace("<mask>", "[MASK]") + "\n\n"))
    main(words)
    _same(_lines(capsys.readouterr().out), answers)


def test_a_file_has_a_progress_bar_in_a_terminal(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    main([*words, "--file", str(path)])
    out, error = capsys.readouterr()
    assert len(_lines(out)) == 70
    assert "70/70" in error


def test_options_reach_the_filling(words: list[str], capsys: pytest.CaptureFixture[str], model_folder: Path) -> None:
    fill_mask = FillMask.from_pretrained(str(model_folder), device="cpu")
    text = "the <mask> sat on <mask> mat"
    main([*words, "--json", "--joint", "beam", "--num_beams", "3", text])
    _same(_lines(capsys.readouterr().out), [fill_mask(text, top_k=2, joint="beam", num_beams=3)])
    main([*words[:2], "--json", "--targets", "red,cat,unbelievable", "a <mask>"])
    _same(_lines(capsys.readouterr().out), [fill_mask("a <mask>", targets=[" red", " cat", " unbelievable"])])
    main([*words, "--json", "--truncation", "the cat " * 90 + "<mask>"])
    assert len(_lines(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("family", "expected"),
    [("roberta", [" cat", "Ġcat"]), ("xlm-roberta", [" cat", " Ġcat"]), ("bert", ["cat", "Ġcat"])],
)
def test_targets_are_words_of_their_own(family: str, expected: list[str]) -> None:
    found = target_words("cat , Ġcat", tokenizer_like(family))
    assert found[0] == expected[0]
    if family != "xlm-roberta":
        assert found == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["nothing"], "no mask token in 'nothing' (text 1): write <mask> where"),
        ([""], "an empty text (text 1)"),
        (["<mask>", "--top_k", "301"], "top_k=301 must be between 1 and 300"),
        (["<mask>", "--top_k", "x"], "--top_k: invalid int value: 'x'"),
        (["<mask>", "--joint", "best"], "--joint: invalid choice: 'best'"),
        (["<mask>", "--dtype", "int8"], "dtype='int8' is no floating-point type"),
        (["<mask>" + " the cat" * 90], "tokens is longer than the model's 64 positions (text 1)"),
        (["<mask>", "--file", "x.txt"], "give texts or --file, not both"),
        (["--file", "missing.txt"], "--file missing.txt: no such file"),
        (["--file", "README.md"], "--file README.md must be one of .txt .text .jsonl .ndjson .json .csv"),
        (["--file", "{rows}"], "rows.jsonl, line 1: --text_column text holds no text; the columns are: body"),
        (["--file", "{rows}", "--text_column", "body"], "rows.jsonl, line 3: not JSON"),
        (["<mask>", "--model", "missing-model"], "'missing-model' cannot be loaded for masked language modeling"),
    ],
)
def test_a_wrong_word_is_one_clear_line(
    more: list[str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "a <mask>"}\n{"body": "the <mask>"}\n{"bo\n')
    with pytest.raises(SystemExit) as caught:
        main([*words, *(word.replace("{rows}", str(rows)) for word in more)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_prompt_takes_texts_and_commands(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is a line, and the prompt returns; the end of the input ends it like ``:quit``."""
    typed = ["the cat [MASK]", ":top_k 3", "the <mask>", ":targets cat,mat", ":top_k", "a <mask>", ":targets", "oops"]
    typed += [":top_k many", ":topk 3", ":joint beam", "<mask> <mask>", ":joint", "", ":help", ":quit", "never <mask>"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    main(words)
    out = re.sub("^(> )+", "", capsys.readouterr().out, flags=re.MULTILINE)
    shown = [len(block.splitlines()) - 1 for block in re.findall(r"(?:^.*<mask>\n)(?:^  +\S.*\n)+", out, re.MULTILINE)]
    assert shown == [2, 3, 2, 5]
    assert "error: no mask token in 'oops': write <mask>" in out
    assert "error: :top_k many must be a whole number" in out
    assert "error: ':topk 3' is no command: :top_k, :targets, :joint, :help, :quit" in out
    assert ":quit" in out
    assert "never" not in out

    for end in ("", "exit\nnever <mask>\n", "quit\nnever <mask>\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(end))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        main(words)
        assert not re.search("error|never", capsys.readouterr().out)


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(words: list[str], tmp_path: Path) -> None:
    """``| head -1``: no traceback, exit code 0."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS * 16))
    command = [sys.executable, "-m", "launch.fill_mask", *words, "--batch_size", "1", "--file", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_tokenizer_of_the_folder_is_the_one_used(model_folder: Path) -> None:
    fill_mask = FillMask.from_pretrained(str(model_folder))
    assert fill_mask.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(model_folder).get_vocab()


def test_the_rows_of_a_file_are_read_as_a_run_reads_them(tmp_path: Path) -> None:
    """Lists are joined by a space, and a bad row has its own line's number, blank lines counted."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": {"text": ["two", "parts"]}}\n\n\n{"a": {"text": 1}}\n')
    texts = open_texts(argparse.Namespace(texts=[], file=str(rows), text_column="a.text"))
    assert next(texts) == "two parts"
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 4: --text_column a\.text holds no text"):
        next(texts)
