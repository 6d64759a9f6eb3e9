"""Blocks on disk: every token accounted for, made once, never half there."""

import dataclasses
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, TokenBlocks, build_blocks, vocab_size
from data.documents import FileRows
from tests.batches import batch_of, encode, micro_batches_of

Pair = tuple[Documents, Documents]


def _all_tokens(documents: Documents, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return np.concatenate([encode(tokenizer, texts) for texts in documents.texts()])


@pytest.mark.parametrize("last_block", ["drop", "pad"])
def test_every_token_is_kept_dropped_or_beside_padding(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path, last_block: str
) -> None:
    config = dataclasses.replace(data_config, last_block=last_block, cache_dir=str(tmp_path), block_size=64)  # type: ignore[arg-type]
    blocks = build_blocks(documents[:1], tokenizer, config)
    tokens = _all_tokens(documents[0], tokenizer)
    counts = blocks.counts
    assert counts.kept + counts.dropped == len(tokens)
    assert counts.kept + counts.padded == 64 * len(blocks)
    assert counts.documents == sum(map(len, documents[0].texts()))
    flat = blocks[np.arange(len(blocks))].ravel()
    assert np.array_equal(flat[: counts.kept], tokens[: counts.kept])
    assert (flat[counts.kept :] == 2**16 - 1).all()  # no token: the collator puts the tokenizer's padding there
    assert (counts.dropped == 0) == (last_block == "pad")
    assert np.array_equal(blocks.token_counts(), np.bincount(tokens, minlength=vocab_size(tokenizer)))


def test_only_a_padded_block_has_an_attention_mask(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, last_block="pad", cache_dir=str(tmp_path), block_size=64)
    dataset = micro_batches_of(documents[0], tokenizer, config, seed=0)
    padded = build_blocks(documents[:1], tokenizer, config).counts.padded
    last = len(dataset.blocks) - 1
    assert batch_of(dataset, np.array([0, last - 1])).attention_mask is None
    batch = batch_of(dataset, np.array([last, 0]))
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(dim=1).tolist() == [64 - padded, 64]
    assert (batch.input_ids[0, 64 - padded :] == tokenizer.pad_token_id).all()
    assert padded > 0


def test_the_smallest_integer_holds_the_vocabulary(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    blocks = build_blocks(documents[:1], tokenizer, dataclasses.replace(data_config, cache_dir=str(tmp_path)))
    assert blocks[np.array([0])].dtype == np.uint16
    assert (blocks.folder / "blocks.bin").stat().st_size == 2 * blocks.counts.kept


def test_the_second_time_nothing_is_tokenized(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    first = build_blocks(documents[:1], tokenizer, config)
    written = (first.folder / "blocks.bin").stat().st_mtime_ns
    second = build_blocks(documents[:1], tokenizer, config)
    assert second.folder == first.folder
    assert (second.folder / "blocks.bin").stat().st_mtime_ns == written
    assert build_blocks(documents[:1], tokenizer, dataclasses.replace(config, block_size=8)).folder != first.folder
    assert build_blocks(documents[1:], tokenizer, config).folder != first.folder


def test_the_hash_is_of_the_tokens_not_of_where_they_lie(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    one, two = (
        build_blocks(documents[:1], tokenizer, dataclasses.replace(data_config, cache_dir=str(tmp_path / name)))
        for name in "ab"
    )
    assert one.sha256 == two.sha256


def test_a_preparation_that_breaks_off_leaves_nothing(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "fine"}\n{"text": 1}\n')
    broken = dataclasses.replace(documents[0], rows=FileRows((str(path),)))
    with pytest.raises(ValueError, match="holds no text"):
        build_blocks([broken], tokenizer, config)
    assert [p.suffix for p in (tmp_path / "blocks").iterdir()] == [".lock"]


def _build(args: tuple[tuple[Documents, ...], PreTrainedTokenizerBase, DataConfig]) -> str:
    return build_blocks(*args).sha256


def test_several_processes_may_build_the_same_blocks(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        hashes = pool.map(_build, [(documents[:1], tokenizer, config)] * 3, chunksize=1)
    assert len(set(hashes)) == 1
    assert sorted(p.suffix for p in (tmp_path / "blocks").iterdir()) == ["", ".lock"]


def test_a_worker_maps_the_file_instead_of_copying_it(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> None:
    blocks = build_blocks(documents[:1], tokenizer, data_config)
    packed = pickle.dumps(blocks)
    assert len(packed) < 1000
    reopened: TokenBlocks = pickle.loads(packed)
    assert np.array_equal(reopened[np.array([3])], blocks[np.array([3])])


def test_fewer_tokens_than_a_block_is_a_clear_error(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path), block_size=100_000)
    with pytest.raises(
        ValueError, match=r"do not fill one block: use a --block_size below 100000, or --last_block pad"
    ):
        build_blocks(documents[:1], tokenizer, config)
