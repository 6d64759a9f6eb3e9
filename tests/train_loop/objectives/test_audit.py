"""`tests.audit`: what other loops compute, on tiny models of many families."""

import json
from typing import Any

import pytest

from tests.audit import main

# transformers 5.23: these divide by the masked tokens of the update, the others take a mean of their micro-batch.
RIGHT = {"modernbert", "eurobert"}
FAMILIES = ["albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "eurobert", "modernbert"]
FAMILIES += ["mpnet", "roberta", "xlm-roberta"]


def _rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    main([*words, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _check(rows: list[dict[str, Any]], *, is_right: bool) -> None:
    for row in rows:
        is_exact = abs(row["gradient x"] - 1) < 1e-4 and row["cosine"] > 1 - 1e-6
        assert is_exact == (is_right or "MaskedLMLoss" in row["loop"] or row["processes"] * row["accumulation"] == 1)


@pytest.mark.parametrize("family", [f if f == "bert" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_trainer_with_our_loss_is_exact_in_all_families(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys, "trainer", "--model_type", family, "--processes", "1", "--accumulation", "1", "2", "4")
    assert [row["loop"] for row in rows] == ["Trainer"] * 3 + ["Trainer with MaskedLMLoss"] * 3
    _check(rows, is_right=family in RIGHT)
    if family not in RIGHT:
        assert rows[2]["gradient x"] == pytest.approx(4, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_on_two_processes_too(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    _check(_rows(capsys, "trainer", "--model_type", family, "--processes", "2"), is_right=family in RIGHT)


def test_a_loop_with_means_of_means_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    main(["accelerate", "--model_type", "bert", "--accumulation", "1", "4", "--processes", "1"])
    header, alone, in_four, _, *advice = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "loop"
    assert alone.split()[4:6] == ["1.000", "1.0000"]
    assert float(in_four.split()[5]) < 0.9999
    assert "masked tokens of the whole update" in " ".join(advice)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer", "--model_type", "gpt2"), "'gpt2' cannot be opened as a masked language model"),
        (
            ("trainer", "--model_type", "bert", "--accumulation", "3"),
            "accumulation 3 must divide the 8 texts",
        ),
        (("trainer",), "one of the arguments --model --model_type is required"),
        (("fairseq", "--model_type", "bert"), "invalid choice: 'fairseq'"),
    ],
)
def test_a_wrong_word_is_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
