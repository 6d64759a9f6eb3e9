"""Tokens as text, for the three ways in which tokenizers write a space."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.blocks.tokenization import train_bpe
from launch.terminal.token_text import CUT, Piece, pieces, token_text, visible

SPECIAL = {"[UNK]": 0, "[MASK]": 1, "[SEP]": 2}


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]", sep_token="[SEP]"
    )


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(iter([["the cat sat on the mat, the cats sat"]]), 280), mask_token="<mask>"
    )


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    words = ["the", "cat", "##s", "sat", ",", "##er"]
    tokenizer = Tokenizer(models.WordPiece(SPECIAL | {w: i for i, w in enumerate(words, 3)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer)


def _unigram(decoder: decoders.Decoder) -> PreTrainedTokenizerBase:
    words = [*SPECIAL, "▁the", "▁cat", "s", "▁sat", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoder
    return _fast(tokenizer)


@pytest.fixture(scope="module")
def metaspace() -> PreTrainedTokenizerBase:
    """As XLM-RoBERTa's and DeBERTa's."""
    return _unigram(decoders.Metaspace())


@pytest.fixture(scope="module")
def byte_fallback() -> PreTrainedTokenizerBase:
    """As Gemma's and mmBERT's."""
    return _unigram(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


def _texts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return [piece.text for piece in pieces(tokenizer, tokenizer.encode(text, add_special_tokens=False))]


def test_wordpieces_are_joined_and_words_are_not(wordpiece: PreTrainedTokenizerBase) -> None:
    assert _texts(wordpiece, "the cats , sat") == [" the", " cat", "s", ",", " sat"]
    assert _texts(wordpiece, "the cat [SEP] sat") == [" the", " cat", " [SEP]", " sat"]
    ids = wordpiece.convert_tokens_to_ids(["##s", "cat"])
    assert [token_text(wordpiece, token) for token in ids] == ["s", " cat"]


@pytest.mark.parametrize("name", ["metaspace", "byte_fallback"])
def test_sentencepieces_have_the_space_before_them(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    assert _texts(tokenizer, "the cats sat") == [" the", " cat", "s", " sat"]
    ids = tokenizer.convert_tokens_to_ids(["▁cat", "s"])
    assert [token_text(tokenizer, token) for token in ids] == [" cat", "s"]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_over_several_tokens_is_one_piece(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    found = list(pieces(tokenizer, tokenizer.encode("the→é😀 cats", add_special_tokens=False)))
    cut = [piece for piece in found if piece.num_tokens > 1]
    assert cut == [Piece("→", 3), Piece("é", 2), Piece("😀", 4)]
    assert "".join(piece.text for piece in found).strip() == "the→é😀 cats"


def test_a_block_that_begins_or_ends_inside_a_character(byte_level: PreTrainedTokenizerBase) -> None:
    ids = byte_level.encode("→ the→ cat→", add_special_tokens=False)
    found = list(pieces(byte_level, ids[1:-1]))
    texts = [piece.text for piece in found]
    assert texts[:2] == texts[-2:] == [CUT, CUT]
    assert "".join(texts) == f"{CUT * 2} the→ cat{CUT * 2}"
    assert [piece.num_tokens for piece in found if piece.text == "→"] == [3]


@given(text=st.text(st.characters(codec="utf-8")), start=st.integers(0, 5), stop=st.integers(-5, -1))
def test_the_pieces_are_all_of_the_text_and_all_of_the_tokens(
    byte_level: PreTrainedTokenizerBase, text: str, start: int, stop: int
) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    assert "".join(_texts(byte_level, text)) == text
    cut = ids[start:stop]
    assert sum(piece.num_tokens for piece in pieces(byte_level, cut)) == len(cut)


def test_what_does_not_print_is_visible() -> None:
    assert visible("a\nb\tc\x1b[31m\u202ed é") == "a⏎b\\tc\\x1b[31m\\u202ed é"
    assert visible("⟦a⟧", reserved="⟦⟧") == "\\u27e6a\\u27e7"
