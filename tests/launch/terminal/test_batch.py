"""Each kind of predicted token has its own mark, and no text looks like a mark."""

import re

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from data import vocabulary
from launch.terminal.batch import Kind, kind_of, mark, row_text


def _row(tokenizer: PreTrainedTokenizerBase, text: str, seen: dict[int, int], *, colours: bool = False) -> str:
    labels = tokenizer.encode(text)
    shown = [seen.get(i, token) for i, token in enumerate(labels)]
    return _text(tokenizer, labels, shown, [i in seen for i in range(len(labels))], colours=colours)


def _text(tokenizer: PreTrainedTokenizerBase, *row: list[int], colours: bool = False) -> str:
    return row_text(tokenizer, vocabulary(tokenizer).is_special, *row, colours=colours)


def test_the_kind_follows_from_what_the_model_sees() -> None:
    assert kind_of(label=7, seen=4, mask_token_id=4) is Kind.MASKED
    assert kind_of(label=7, seen=9, mask_token_id=4) is Kind.REPLACED
    assert kind_of(label=7, seen=7, mask_token_id=4) is Kind.KEPT


@pytest.mark.parametrize(
    ("kind", "label", "seen", "expected"),
    [
        (Kind.MASKED, " the", "<mask>", " ⟦the⟧"),
        (Kind.MASKED, "ing", "<mask>", "⟦ing⟧"),
        (Kind.KEPT, " sat", " sat", " ⟦sat≡⟧"),
        (Kind.REPLACED, " cat", " blue", " ⟦cat→blue⟧"),
        (Kind.REPLACED, "ing", "ed", "⟦ing→ed⟧"),
        (Kind.REPLACED, " cat", "ing", "⟦␣cat→ing⟧"),
        (Kind.REPLACED, "ing", " cat", "⟦ing→␣cat⟧"),
        (Kind.MASKED, " ", "<mask>", "⟦␣⟧"),
        (Kind.REPLACED, " cat", " ", "⟦␣cat→␣⟧"),
        (Kind.MASKED, "\n", "<mask>", "⟦⏎⟧"),
        (Kind.MASKED, "a→b", "<mask>", "⟦a\\u2192b⟧"),
        (Kind.MASKED, "≡⟧", "<mask>", "⟦\\u2261\\u27e7⟧"),
    ],
)
def test_a_mark_without_colours(kind: Kind, label: str, seen: str, expected: str) -> None:
    assert mark(kind, label, seen, colours=False) == expected


def test_each_kind_has_a_colour_of_its_own() -> None:
    assert mark(Kind.MASKED, " the", "<mask>", colours=True) == " \x1b[30;43mthe\x1b[0m"
    assert mark(Kind.REPLACED, " cat", " blue", colours=True) == " \x1b[97;41mcat→blue\x1b[0m"
    assert mark(Kind.KEPT, "sat", "sat", colours=True) == "\x1b[30;42msat\x1b[0m"


def test_a_row_is_its_text_with_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, mask = tokenizer.encode("the cat sat"), tokenizer.mask_token_id
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "t", "he", "Ġ", "cat", "Ġsat", "</s>"]
    assert _row(tokenizer, "the cat sat", {}) == "<s>the cat sat</s>"
    assert _row(tokenizer, "the cat sat", {2: ids[2], 4: ids[1], 5: mask}) == "<s>t⟦he≡⟧ ⟦cat→t⟧ ⟦sat⟧</s>"
    coloured = _row(tokenizer, "the cat sat", {5: mask}, colours=True)
    assert coloured == "\x1b[2m<s>\x1b[0mthe cat \x1b[30;43msat\x1b[0m\x1b[2m</s>\x1b[0m"


def test_text_with_the_marks_own_characters_is_escaped(tokenizer: PreTrainedTokenizerBase) -> None:
    assert _row(tokenizer, "the ⟦cat⟧\n\x1b[31m", {}) == "<s>the \\u27e6cat\\u27e7⏎\\x1b[31m</s>"


def test_a_part_of_a_character_says_which(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("é", add_special_tokens=False)) == ["Ã", "©"]
    mask, e_acute = tokenizer.mask_token_id, tokenizer.encode("é")
    assert _row(tokenizer, "é", {1: mask}) == "<s>⟦é(1/2)⟧</s>"
    assert _row(tokenizer, "é", {1: mask, 2: e_acute[2]}) == "<s>⟦é(1/2)⟧⟦é(2/2)≡⟧</s>"


def test_long_runs_of_a_special_token_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    pad = tokenizer.pad_token_id
    for count, expected in ((3, "<pad><pad><pad>"), (40, "<pad>x40")):
        assert _text(tokenizer, [pad] * count, [pad] * count, [False] * count) == expected
    a = tokenizer.encode("aaaaa", add_special_tokens=False)
    assert _text(tokenizer, a, a, [False] * len(a)) == "aaaaa"


def test_coloured_neighbours_are_told_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    mask = tokenizer.mask_token_id
    row = _row(tokenizer, "é", {1: mask, 2: mask}, colours=True)
    assert "é(1/2)\x1b[0m│\x1b[30;43mé(2/2)" in row


def test_a_real_vocabulary_never_looks_like_a_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    regular = vocabulary(tokenizer).regular_ids.tolist()
    nothing_special = np.zeros(len(tokenizer), dtype=bool)
    row = row_text(tokenizer, nothing_special, regular, regular, [False] * len(regular), colours=False)
    assert not re.search("[⟦⟧]", row)
