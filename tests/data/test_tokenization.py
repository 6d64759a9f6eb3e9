"""Tokens are those of the tokenizer's own call, whatever is saved in its file."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data import DataConfig, Documents, open_tokenizer, vocab_size, vocabulary
from data.tokenization import tokenizer_fingerprint, train_bpe
from tests.batches import encode

TEXTS = ["the cat sat", "", "naïve 日本語 \x00 <mask> text", "a " * 3000]


def test_tokens_are_those_of_the_tokenizers_own_call(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = [token for text in TEXTS for token in tokenizer(text)["input_ids"]]
    assert encode(tokenizer, TEXTS).tolist() == expected


def test_a_truncation_or_padding_in_the_file_is_ignored(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.backend_tokenizer.enable_truncation(8)
    other.backend_tokenizer.enable_padding(length=8)
    assert np.array_equal(encode(other, TEXTS), encode(tokenizer, TEXTS))


def test_a_trained_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(reopened) == tokenizer_fingerprint(tokenizer)
    assert [tokenizer.decode(tokenizer(t)["input_ids"], skip_special_tokens=True) for t in TEXTS[:2]] == TEXTS[:2]
    assert np.array_equal(encode(reopened, TEXTS), encode(tokenizer, TEXTS))


def test_training_a_tokenizer_is_deterministic(documents: tuple[Documents, Documents]) -> None:
    one, two = (train_bpe(documents[0].texts(), 320).to_str() for _ in range(2))
    assert one == two


def test_the_mask_token_takes_the_space_before_it(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.mask_token_id in tokenizer("the <mask> sat")["input_ids"]
    assert tokenizer("the <mask> sat")["input_ids"] == tokenizer("the<mask> sat")["input_ids"]


def test_the_vocabulary_knows_the_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    vocab = vocabulary(tokenizer)
    assert len(vocab.is_special) == vocab_size(tokenizer) == 300
    assert np.flatnonzero(vocab.is_special).tolist() == sorted(tokenizer.all_special_ids)
    assert vocab.mask_token_id == tokenizer.mask_token_id


def test_no_mask_token_is_a_clear_error(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no mask token"):
        open_tokenizer(DataConfig(tokenizer_name_or_path=str(tmp_path)), None, None)  # type: ignore[arg-type]


def test_no_pad_token_is_an_error_only_where_blocks_are_padded(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, mask_token="<mask>")
    bare.save_pretrained(tmp_path)
    open_tokenizer(DataConfig(tokenizer_name_or_path=str(tmp_path)), None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pad token: use --grouping concatenate --last_block drop"):
        open_tokenizer(DataConfig(tokenizer_name_or_path=str(tmp_path), last_block="pad"), None, None)  # type: ignore[arg-type]


def test_there_must_be_some_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--train_tokenizer"):
        open_tokenizer(DataConfig(), None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_tokenizer(DataConfig(), None, str(tmp_path))  # type: ignore[arg-type]


def test_a_vocabulary_too_small_for_the_bytes_is_a_clear_error(documents: tuple[Documents, Documents]) -> None:
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 261"):
        train_bpe(documents[0].texts(), 100)
