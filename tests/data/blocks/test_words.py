"""Where words begin, for each kind of tokenizer, in English and in Chinese and Japanese."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CanineTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.blocks.words import word_starts
from tests.batches import encode, encode_with_words
from tests.conftest import sentences

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = [*sentences(50), "it's unbelievable, isn't it? (Yes!)", "The cat, the mat: 12 dogs."]
CJK = ["我们喜欢猫。", "日本の猫が大好きです。", "我们的猫和日本の犬"]


def finished(backend: Tokenizer, trainer: trainers.Trainer, texts: list[str]) -> PreTrainedTokenizerBase:
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )


def byte_level(texts: list[str]) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return finished(backend, trainer, texts)


def word_piece(texts: list[str]) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return finished(
        backend, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False), texts
    )


def unigram(texts: list[str], *, split: bool) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", max_piece_length=4, show_progress=False
    )
    return finished(backend, trainer, texts)


def words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The text of each word, as the decoder writes it."""
    tokens, starts = encode_with_words(tokenizer, [text])
    bounds = [*np.flatnonzero(starts), len(tokens)]
    return [
        tokenizer.backend_tokenizer.decoder.decode(tokenizer.convert_ids_to_tokens(tokens[begin:end].tolist()))
        for begin, end in itertools.pairwise(bounds)
    ]


def test_english_in_byte_level_bpe() -> None:
    tokenizer = byte_level(TEXTS)
    assert len(tokenizer(" unbelievable cats").input_ids) > 4  # several tokens a word
    assert words(tokenizer, "The cats, isn't it unbelievable?!") == [
        *("<s>", "The", " cats", ",", " isn", "'t", " it", " unbelievable", "?!", "</s>")
    ]


def test_english_in_word_piece() -> None:
    tokenizer = word_piece(TEXTS)
    assert words(tokenizer, "the catsdogs, isn't it") == [
        *("<s>", "the", "catsdogs", ",", "isn", "'", "t", "it", "</s>")
    ]


@pytest.mark.parametrize("split", [True, False])
def test_english_in_unigram_with_metaspace(split: bool) -> None:
    """Without a split, the word ids make the whole text one word."""
    tokenizer = unigram(TEXTS, split=split)
    assert words(tokenizer, "the cats, it saw dogs") == [*("<s>", "the", "cats,", "it", "saw", "dogs", "</s>")]


@pytest.mark.parametrize("corpus", [TEXTS, CJK * 20], ids=["bytes", "merged"])
def test_chinese_in_byte_level_bpe(corpus: list[str]) -> None:
    """Where nothing was learnt, a character is three tokens: one word. Where merges cross characters, a token
    that begins within a character goes on with its word."""
    tokenizer = byte_level(corpus)
    tokens, starts = encode_with_words(tokenizer, ["我们喜欢猫"])
    if corpus is TEXTS:
        assert len(tokens) == 2 + 5 * 3
        assert words(tokenizer, "a我们喜 猫,b") == [*("<s>", "a", "我", "们", "喜", " ", "猫", ",", "b", "</s>")]
    else:
        assert len(tokens) < 2 + 5 * 3
        assert words(tokenizer, "日本の猫") == [
            "<s>",
            *(tokenizer.decode([token]) for token in encode(tokenizer, ["日本の猫"])[1:-1]),
            "</s>",
        ]
    assert starts.sum() > 2


def test_chinese_in_word_piece() -> None:
    """BERT's normalizer puts spaces around Chinese characters, and not around kana; without it, all that follows a
    word's first piece is ``##`` pieces."""
    tokenizer = word_piece([*TEXTS, *"".join(CJK)])
    assert words(tokenizer, "我们的猫 cats") == ["<s>", "我", "们", "的", "猫", "cats", "</s>"]
    vocab = [*SPECIAL, "日", "##本", "##の", "##cat", "##s", "##犬"]
    tokenizer.backend_tokenizer.model = models.WordPiece(
        {token: index for index, token in enumerate(vocab)}, unk_token="<unk>"
    )
    tokenizer.backend_tokenizer.normalizer = None
    assert len(encode(tokenizer, ["日本のcats犬"])) == 8
    assert words(tokenizer, "日本のcats犬") == ["<s>", "日", "##本", "##の", "##cats", "##犬", "</s>"]


@pytest.mark.parametrize("split", [True, False])
def test_chinese_in_unigram_with_metaspace(split: bool) -> None:
    """A sentence is one word by its word ids; by its characters, each token is a word, and what follows one."""
    tokenizer = unigram([*TEXTS, *CJK * 20], split=split)
    tokens, starts = encode_with_words(tokenizer, ["我们喜欢猫 cats saw日本saw"])
    pieces = tokenizer.convert_ids_to_tokens(tokens.tolist())
    assert "<unk>" not in pieces
    for index, piece in enumerate(pieces):
        latin = piece.isascii() and piece not in SPECIAL
        after_latin = index > 0 and pieces[index - 1].lstrip("▁").isascii() and pieces[index - 1] not in SPECIAL
        assert starts[index] == (not (latin and after_latin)), pieces


def test_special_tokens_and_texts_are_bounds() -> None:
    """Also a special token that stands in the text itself."""
    tokenizer = word_piece(TEXTS)
    assert words(tokenizer, "cat<mask>sat") == ["<s>", "cat", "<mask>", "sat", "</s>"]
    tokenizer.backend_tokenizer.post_processor = None
    tokens, starts = encode_with_words(tokenizer, ["the", "", "cat", "sat on"])
    assert starts.all()
    assert len(tokens) == 4
    assert encode_with_words(tokenizer, [])[1].shape == (0,)


def test_tokens_added_later_are_known() -> None:
    tokenizer = word_piece(TEXTS)
    encode_with_words(tokenizer, ["the cat"])
    tokenizer.add_tokens(["dogcat"])
    assert words(tokenizer, "a dogcat sat") == ["<s>", "a", "dogcat", "sat", "</s>"]


@given(texts=st.lists(st.text(max_size=30), max_size=4))
def test_tokens_are_those_of_encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    tokens, starts = encode_with_words(tokenizer, texts)
    assert np.array_equal(tokens, encode(tokenizer, texts))
    assert tokens.dtype == np.int64
    assert starts.dtype == bool
    assert starts.shape == tokens.shape
    special = np.isin(tokens, tokenizer.all_special_ids)
    assert starts[special].all()
    assert starts[1:][special[:-1]].all()


def test_word_ids_may_come_from_anywhere(tokenizer: PreTrainedTokenizerBase) -> None:
    """Lists with None, as datasets give them back; 0, 0 | 1 and 0 | 0 of the next text."""
    tokens = tokenizer("the").input_ids[1:2] * 5
    starts = word_starts(tokenizer, np.array(tokens), [None, 0, 0, 0, 0], [4, 1])
    assert starts.tolist() == [True, True, False, False, True]


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masking=whole_word needs a fast tokenizer: CanineTokenizer"):
        encode_with_words(CanineTokenizer(), ["a"])
