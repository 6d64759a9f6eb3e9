"""``mlm score``."""

import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from launch.score import main
from tests.models import tiny_model
from train_loop import TextScorer, pseudo_perplexity

TEXTS = ["the cat sat on a mat", "a red ball", "then it saw two dogs"]


@pytest.mark.parametrize("within_word", [False, True])
def test_a_table_and_its_sum(within_word: bool, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = TextScorer.from_pretrained(str(model_folder), device="cpu")(TEXTS, within_word=within_word)
    main(["--model", str(model_folder), "--device", "cpu", *["--within_word"] * within_word, *TEXTS])
    header, *rows, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["pseudo-perplexity", "log-likelihood", "tokens", "text"]
    for row, score in zip(rows, scores, strict=True):
        perplexity, log_likelihood, num_tokens, text = row.split(maxsplit=3)
        assert float(perplexity) == pytest.approx(score.pseudo_perplexity, abs=0.0051)
        assert float(log_likelihood) == pytest.approx(score.pseudo_log_likelihood, abs=0.0051)
        assert (int(num_tokens), text) == (len(score.tokens), score.text)
    assert float(total.split()[1]) == pytest.approx(pseudo_perplexity(scores), abs=0.0051)
    assert total.endswith(f"over {sum(len(score.tokens) for score in scores)} tokens")


def test_lines_for_programs(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    main(["--model", str(model_folder), "--tokens", "--batch_size", "5"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert row["num_tokens"] == len(row["tokens"]) == len(row["log_probs"])
        assert row["pseudo_log_likelihood"] == pytest.approx(math.fsum(row["log_probs"]))
        assert row["pseudo_perplexity"] == pytest.approx(math.exp(-math.fsum(row["log_probs"]) / row["num_tokens"]))


def test_a_perplexity_past_all_numbers_is_null_in_json(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.get_output_embeddings().bias[0] = 1e4  # a special token, which no text has: all others are hopeless
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXTS[0]))
    main(["--model", str(tmp_path)])
    row = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["pseudo_perplexity"] is None
    assert row["pseudo_log_likelihood"] < -700 * row["num_tokens"]


def test_the_tokens_of_a_table(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", str(model_folder), "--tokens", TEXTS[0]])
    (score,) = TextScorer.from_pretrained(str(model_folder))([TEXTS[0]])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows] == [
        [f"{p:.2f}", token.replace("Ġ", "␣")] for p, token in zip(score.log_probs, score.tokens, strict=True)
    ]
    assert any(row.split()[1].startswith("␣") for row in rows)


def test_a_long_text_keeps_to_its_column_of_a_terminal(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    main(["--model", str(model_folder), " ".join(TEXTS)])
    header, *lines = capsys.readouterr().out.splitlines()
    column = header.index("text")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    assert " ".join(line[column:] for line in lines) == " ".join(TEXTS)


def test_a_perplexity_without_end_is_short(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("roberta")
    with torch.no_grad():
        model.lm_head.bias[7] = 400  # sure of one token
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    main(["--model", str(tmp_path), *TEXTS])
    _, *rows, total = capsys.readouterr().out.splitlines()
    assert all("e+17" in row and len(row) < 100 for row in rows)
    assert re.fullmatch(r"pseudo-perplexity \d\.\d+e\+17\d over \d+ tokens", total)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a <mask>"], "a mask in 'a <mask>' (text 1)"),
        ([], "no texts: give some, or --file, or pipe them in"),
        (["a", "--batch_size", "0"], "batch_size=0 must be 1 or more"),
    ],
)
def test_a_wrong_word_is_one_clear_line(
    words: list[str],
    message: str,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(model_folder), *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
