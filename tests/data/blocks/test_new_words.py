"""Tokenizers with new words: the words become one token, and nothing else changes."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from data import vocab_size
from data.blocks.new_words import ShatteredWord, save_with_words, shattered_words
from data.blocks.words import word_starts
from tests.models import tiny_model
from tests.tokenizers import bert_of_letters, tokenizer_like

NEW = [
    "The queryset of a template: querysets, templates, Template.",
    "A queryset, the queryset; django-admin",
    "django",
]
NEW += ["queryset's template_tag", "\n\tqueryset  template\n", "naïve naïve naïve", "django's <mask> queryset"]


def _roberta(folder: Path) -> PreTrainedTokenizerBase:
    """Of the class that transformers has for RoBERTa, which builds its own BPE of the vocabulary and the merges."""
    content = json.loads(tokenizer_like("roberta").backend_tokenizer.to_str())
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return RobertaTokenizer.from_pretrained(folder)


def _modernbert(folder: Path) -> PreTrainedTokenizerBase:
    """With added tokens outside of the vocabulary, as ModernBERT's own has them."""
    tokenizer = tokenizer_like("modernbert")
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["   ", "|||IP_ADDRESS|||"])
    return tokenizer


KINDS = {"roberta": _roberta, "modernbert": _modernbert, "bert": bert_of_letters}
Pair = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, list[ShatteredWord]]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer, and the same with ten new words as any command opens it: beside its model's configuration."""
    old = KINDS[request.param](tmp_path_factory.mktemp("old"))
    found, _, _ = shattered_words(old, [NEW])
    folder = tmp_path_factory.mktemp("new")
    tiny_model(request.param).config.save_pretrained(folder)
    save_with_words(old, [name for _, name, _ in found[:10]], folder)
    return old, AutoTokenizer.from_pretrained(folder), found[:10]


def _texts(kind: str) -> st.SearchStrategy[str]:
    """Words of the texts, whole and within longer ones, among any characters.

    A WordPiece is not given symbols: beside one, which it takes for a letter, an added token is found.
    """
    symbols = ["No", "Sm", "Sc", "Sk", "So", "Cn", "Co", "Cs"] if kind == "WordPiece" else ["Cs"]
    words = st.sampled_from(
        ["queryset", "template", "django", "naïve", "s", "The", " ", "  ", "'", "-", "_", "^", "=", "\n", "的"]
    )
    return st.lists(words | st.text(st.characters(exclude_categories=symbols), max_size=3), max_size=12).map("".join)


@given(data=st.data())
def test_any_text_has_the_tokens_that_it_had_with_the_pieces_of_new_words_joined(
    pair: Pair, data: st.DataObject
) -> None:
    """So other words are cut as before, no text gets longer, and text, offsets and words are what they were."""
    old, new, words = pair
    text = data.draw(_texts(type(old.backend_tokenizer.model).__name__))
    pieces = {new.convert_tokens_to_ids(name): pieces for _, name, pieces in words}
    ((before,), (after,)) = (tokenizer([text], verbose=False).encodings for tokenizer in (old, new))
    first = 0
    for token, word, span in zip(after.ids, after.word_ids, after.offsets, strict=True):
        same = pieces.get(token, (token,))
        last = first + len(same)
        assert tuple(before.ids[first:last]) == same
        assert set(before.word_ids[first:last]) == {word}
        assert span == (before.offsets[first][0], before.offsets[last - 1][1])
        first = last
    assert first == len(before.ids)
    assert new.decode(after.ids) == old.decode(before.ids)

    starts = [
        word_starts(tokenizer, np.array(e.ids), e.word_ids, [len(e.ids)])
        for tokenizer, e in ((old, before), (new, after))
    ]
    assert [t for t, s in zip(before.ids, starts[0], strict=True) if s] == [
        pieces.get(t, (t,))[0] for t, s in zip(after.ids, starts[1], strict=True) if s
    ]


def test_words_come_by_the_tokens_that_they_save_then_by_name(pair: Pair) -> None:
    old, new, words = pair
    found, before, num_texts = shattered_words(old, [NEW[:3], [], NEW[3:]])
    assert found[:10] == words
    assert found == sorted(found, key=lambda word: (-word[0], word[1]))
    assert all(gain > 0 and gain % (len(pieces) - 1) == 0 for gain, _, pieces in found)
    left, after, _ = shattered_words(new, [NEW])
    assert left == found[10:]
    assert (num_texts, before.total() - after.total()) == (len(NEW), sum(gain for gain, _, _ in words))
    assert before.total() == sum(len(old(text)["input_ids"]) for text in NEW)
    spellings = (
        {"queryset"} if old.backend_tokenizer.model.__class__.__name__ == "WordPiece" else {"queryset", "Ġqueryset"}
    )
    assert spellings <= {name for _, name, _ in found}


def test_old_tokens_keep_their_ids_and_new_ones_come_last(pair: Pair, tmp_path: Path) -> None:
    old, new, words = pair
    size = vocab_size(old)
    new.save_pretrained(tmp_path)  # as a checkpoint does
    tiny_model("roberta").config.save_pretrained(tmp_path)
    for tokenizer in (new, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.convert_tokens_to_ids([name for _, name, _ in words]) == [*range(size, size + len(words))]
        assert {token: tokenizer.get_vocab()[token] for token in old.get_vocab()} == old.get_vocab()
        assert tokenizer.mask_token_id == old.mask_token_id
        assert sorted(tokenizer.all_special_ids) == sorted(old.all_special_ids)
        assert tokenizer.model_input_names == old.model_input_names


@pytest.mark.parametrize("kind", ["Unigram", "Canine", "whole texts"])
def test_a_tokenizer_that_cannot_have_words_is_named(kind: str) -> None:
    if kind == "Canine":
        tokenizer = CanineTokenizer()
    else:
        tokenizer = copy.deepcopy(tokenizer_like("albert" if kind == "Unigram" else "roberta"))
        if kind == "whole texts":
            tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ValueError, match="cannot have new words: use one that cuts text into words"):
        shattered_words(tokenizer, [NEW])
