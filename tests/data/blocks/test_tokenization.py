"""Tokens are those of the tokenizer's own call, whatever is saved in its file."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PhobertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data import DataConfig, Documents, open_tokenizer, vocab_size, vocabulary
from data.blocks.tokenization import tokenizer_fingerprint, train_bpe
from tests.batches import encode
from tests.tokenizers import tokenizer_like

TEXTS = ["the cat sat", "", "naïve 日本語 \x00 <mask> text", "a " * 3000]


def test_tokens_are_those_of_the_tokenizers_own_call(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = [token for text in TEXTS for token in tokenizer(text)["input_ids"]]
    assert encode(tokenizer, TEXTS).tolist() == expected


def test_a_truncation_or_padding_in_the_file_is_ignored_and_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.backend_tokenizer.enable_truncation(8)
    other.backend_tokenizer.enable_padding(length=8)
    assert np.array_equal(encode(other, TEXTS), encode(tokenizer, TEXTS))
    assert other.backend_tokenizer.truncation["max_length"] == 8
    assert other.backend_tokenizer.padding["length"] == 8


def test_a_trained_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(reopened) == tokenizer_fingerprint(tokenizer)
    assert [tokenizer.decode(tokenizer(t)["input_ids"], skip_special_tokens=True) for t in TEXTS[:2]] == TEXTS[:2]
    assert np.array_equal(encode(reopened, TEXTS), encode(tokenizer, TEXTS))


@pytest.mark.parametrize("family", ["roberta", "bert", "xlm-roberta"])
def test_the_fingerprint_stays_when_a_tokenizer_is_used_or_saved(family: str, tmp_path: Path) -> None:
    """Also where its file has a truncation and a padding, which tokenizing takes off."""
    tokenizer = tokenizer_like(family)
    tokenizer.save_pretrained(tmp_path / "plain")
    reopened = AutoTokenizer.from_pretrained(tmp_path / "plain")
    reopened.backend_tokenizer.enable_truncation(8)
    reopened.backend_tokenizer.enable_padding(length=8)
    reopened.save_pretrained(tmp_path / "cut")
    cut = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert cut.backend_tokenizer.truncation is not None
    before = tokenizer_fingerprint(cut)
    encode(cut, TEXTS)
    during = tokenizer_fingerprint(cut)
    cut(TEXTS, truncation=True, max_length=5, padding="max_length")
    assert {before, during, tokenizer_fingerprint(cut)} == {tokenizer_fingerprint(tokenizer)}


def test_the_fingerprint_sees_what_is_special(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Which tokens are masked, and where words begin, depends on it; tokenizer.json does not tell."""
    tokenizer.save_pretrained(tmp_path)
    found = {tokenizer_fingerprint(tokenizer)}
    for changes in ({"mask_token": "the"}, {"extra_special_tokens": ["e"]}, {"split_special_tokens": True}):
        found.add(tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path, **changes)))
    assert len(found) == 4


_PIECES = "th@@ 3\nhe 2\nt@@ 5\nh@@ 5\ne 5\n"


def _phobert(folder: Path, pieces: str, merges: str, **options: str) -> PreTrainedTokenizerBase:
    folder.mkdir()
    (folder / "vocab.txt").write_text(pieces)
    (folder / "bpe.codes").write_text(merges)
    return PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"), **options)


def test_the_fingerprint_of_a_slow_tokenizer_sees_all_of_it(tmp_path: Path) -> None:
    """With the same vocabulary, "the" is th@@ e, or t@@ he, as the merges are."""
    one = _phobert(tmp_path / "one", _PIECES, "t h 5\n")
    again = _phobert(tmp_path / "again", _PIECES, "t h 5\n")
    other_merges = _phobert(tmp_path / "merges", _PIECES, "h e</w> 5\n")
    assert one.tokenize("the") != other_merges.tokenize("the")
    assert one.get_vocab() == other_merges.get_vocab()
    other_options = _phobert(tmp_path / "options", _PIECES, "t h 5\n", cls_token="he")
    other_pieces = _phobert(tmp_path / "pieces", _PIECES + "x 1\n", "t h 5\n")
    again.save_pretrained(tmp_path / "saved")
    reopened = AutoTokenizer.from_pretrained(tmp_path / "saved")
    prints = [tokenizer_fingerprint(t) for t in (one, again, reopened, other_merges, other_options, other_pieces)]
    assert len(set(prints[:3])) == 1
    assert len(set(prints)) == 4


@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_trained_tokenizer_is_named_and_trained_again(
    size: int,
    documents: tuple[Documents, Documents],
    data_config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    open_tokenizer(config, documents[:1], None)
    (file,) = (tmp_path / "tokenizers").iterdir()
    os.truncate(file, size)
    for _ in range(2):
        again = open_tokenizer(config, documents[:1], None)
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
        assert len(caplog.messages) == 1
    assert str(file) in caplog.text


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
    own = tmp_path / "own.py"
    own.write_text("def group(rest, tokens, block_size):\n    return [], rest\n")
    with pytest.raises(ValueError, match=r"grouping=.*own.py:group: .* has no pad token"):
        open_tokenizer(DataConfig(tokenizer_name_or_path=str(tmp_path), grouping=f"{own}:group"), None, None)  # type: ignore[arg-type]


def test_there_must_be_some_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--train_tokenizer"):
        open_tokenizer(DataConfig(), None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_tokenizer(DataConfig(), None, str(tmp_path))  # type: ignore[arg-type]


def test_a_vocabulary_too_small_for_the_bytes_is_a_clear_error(documents: tuple[Documents, Documents]) -> None:
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 261"):
        train_bpe(documents[0].texts(), 100)
