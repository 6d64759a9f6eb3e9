"""Pseudo-log-likelihoods, against a loop over positions with the stock model."""

import functools
import math
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import sharpened, tiny_model
from tests.tokenizers import tokenizer_like
from train_loop import TextScorer, pseudo_perplexity

FAMILIES = ["roberta", "bert", "modernbert", "xlm-roberta"]
TEXTS = ["the cat sat on a mat", "it's unbelievable, isn't it?", "cat", "12 dogs run after one red ball and a mat"]


@functools.cache
def scorer(family: str) -> TextScorer:
    return TextScorer(sharpened(tiny_model(family)).eval(), tokenizer_like(family))


def by_hand(family: str, text: str, words: Sequence[Sequence[str]] | None = None) -> list[float]:
    """Token by token, one text at a time; with words, the later pieces of each word masked too."""
    score = scorer(family)
    model, tokenizer = score.model, score.tokenizer
    row = tokenizer(text)["input_ids"]
    ends = {i: i + 1 for i in range(1, len(row) - 1)}
    position = 1
    for word in words or []:
        for i in range(position, position + len(word)):
            ends[i] = position + len(word)
        position += len(word)
    assert not words or position == len(row) - 1
    log_probs = []
    for i, end in ends.items():
        ids = torch.tensor([[*row[:i], *[tokenizer.mask_token_id] * (end - i), *row[end:]]])
        with torch.no_grad():
            log_probs.append(model(ids).logits[0, i].log_softmax(-1)[row[i]].item())
    return log_probs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_token_is_masked_by_itself(family: str, batch_size: int) -> None:
    score = scorer(family)
    for text, result in zip(TEXTS, score(TEXTS, batch_size=batch_size), strict=True):
        assert result.text == text
        assert result.tokens == score.tokenizer.tokenize(text)
        assert result.log_probs == pytest.approx(by_hand(family, text), rel=1e-4)
        assert result.pseudo_log_likelihood == pytest.approx(sum(result.log_probs))
        assert result.pseudo_perplexity == pytest.approx(math.exp(-sum(result.log_probs) / len(result.tokens)))


@pytest.mark.parametrize("family", FAMILIES)
def test_within_words_the_later_pieces_are_masked_too(family: str) -> None:
    score = scorer(family)
    text = "it unbelievable, dogs"
    pieces = {word: score.tokenizer.tokenize(word) for word in ("it", " unbelievable", ",", " dogs")}
    words = list(pieces.values())
    if family == "xlm-roberta":  # whose words end where white space is
        words = [pieces["it"], score.tokenizer.tokenize("unbelievable,"), pieces[" dogs"]]
    assert max(map(len, words)) > 2
    result = score(text, within_word=True)
    assert result.tokens == [piece for word in words for piece in word]
    assert result.log_probs == pytest.approx(by_hand(family, text, words), rel=1e-4)
    assert result.log_probs != pytest.approx(by_hand(family, text), rel=1e-2)


def test_words_of_one_piece_score_the_same_either_way() -> None:
    score = scorer("bert")
    text = "the cat sat, and a red ball"
    assert all(not token.startswith("##") for token in score.tokenizer.tokenize(text))
    assert score(text, within_word=True).log_probs == pytest.approx(score(text).log_probs)


def test_words_of_sentencepiece_end_at_white_space_though_the_word_ids_go_on() -> None:
    """Where Metaspace does not split first, the word ids make a text one word."""
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_like("xlm-roberta")
    whole = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        **{
            name: getattr(tokenizer, name)
            for name in ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
        },
    )
    whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    text = "the unbelievable mat"
    assert len(set(whole(text).word_ids())) == 2
    assert whole(text)["input_ids"] == tokenizer(text)["input_ids"]
    model = scorer("xlm-roberta").model
    expected = scorer("xlm-roberta")(text, within_word=True).log_probs
    assert TextScorer(model, whole)(text, within_word=True).log_probs == pytest.approx(expected)


@settings(max_examples=10)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5), st.integers(1, 9), st.booleans())
def test_a_texts_score_is_its_own_in_any_company(texts: list[str], batch_size: int, within_word: bool) -> None:
    """One text, a list and an iterator give the same; the perplexity of several is over their tokens."""
    score = scorer("roberta")
    results = score(texts, within_word=within_word, batch_size=batch_size)
    for text, result, streamed in zip(texts, results, score(iter(texts), within_word=within_word), strict=True):
        alone = score(text, within_word=within_word)
        assert result.log_probs == pytest.approx(alone.log_probs, rel=1e-4)
        assert streamed.log_probs == pytest.approx(alone.log_probs, rel=1e-4)
    num_tokens = sum(len(result.tokens) for result in results)
    expected = math.exp(-sum(result.pseudo_log_likelihood for result in results) / num_tokens)
    assert pseudo_perplexity(results) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty text (text 2): there is nothing to score"),
        ("the <mask>", "a mask in 'the <mask>' (text 2)"),
        ("the cat " * 60, "tokens is longer than the model's 64 positions (text 2): 'the cat the"),
    ],
)
def test_bad_input_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        scorer("roberta")(["cat", text])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="batch_size=0 must be 1 or more"):
        scorer("roberta")("cat", batch_size=0)


def test_no_texts_have_no_perplexity() -> None:
    with pytest.raises(ValueError, match="scores=\\[\\] have no token: a perplexity needs one text or more"):
        pseudo_perplexity([])
