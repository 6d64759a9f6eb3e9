"""Blocks on disk: every token accounted for, made once, never half there."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from data import (
    Collator,
    DataConfig,
    Documents,
    TokenBlocks,
    build_blocks,
    open_documents,
    open_tokenizer,
    vocab_size,
    vocabulary,
)
from data.blocks import store as blocks_module
from data.blocks.tokens import ID_MASK
from data.documents.rows import FileRows
from tests.batches import batch_of, encode, micro_batches_of
from tests.launchers import ROOT

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
    assert np.array_equal(blocks.token_counts, np.bincount(tokens, minlength=vocab_size(tokenizer)))


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


def test_the_default_folder_is_in_the_home(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = DataConfig(dataset=str(corpus_file), train_tokenizer=True, vocab_size=300)
    documents = open_documents(config)[0]
    blocks = build_blocks(documents, open_tokenizer(config, documents, None), config)
    assert blocks.folder.parent == tmp_path / "home/.cache/mlm-train-loop/blocks"
    assert sorted(p.name for p in blocks.folder.parent.parent.iterdir()) == ["blocks", "tokenizers"]
    assert list((tmp_path / "here").iterdir()) == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "blocks.json is empty": lambda folder: (folder / "blocks.json").write_text(""),
    "blocks.json is gone": lambda folder: (folder / "blocks.json").unlink(),
    "blocks.json lacks a field": lambda folder: (folder / "blocks.json").write_text('{"block_size": 16}'),
    "blocks.bin is short": lambda folder: os.truncate(folder / "blocks.bin", 30),
    "blocks.bin is empty": lambda folder: os.truncate(folder / "blocks.bin", 0),
    "blocks.bin is gone": lambda folder: (folder / "blocks.bin").unlink(),
    "lengths.npy is short": lambda folder: os.truncate(folder / "lengths.npy", 130),
    "lengths.npy is empty": lambda folder: os.truncate(folder / "lengths.npy", 0),
    "lengths.npy is gone": lambda folder: (folder / "lengths.npy").unlink(),
    "token_counts.npy is short": lambda folder: os.truncate(folder / "token_counts.npy", 130),
    "token_counts.npy is gone": lambda folder: (folder / "token_counts.npy").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_and_made_again(
    documents: Pair,
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path), grouping="line_by_line")
    whole = build_blocks(documents[:1], tokenizer, config)
    ids = np.arange(len(whole))
    wanted, counts = whole[ids], whole.token_counts
    DAMAGES[damage](whole.folder)
    for messages in (1, 1):
        blocks = build_blocks(documents[:1], tokenizer, config)
        assert np.array_equal(blocks[ids], wanted)
        assert np.array_equal(blocks.token_counts, counts)
        assert len(caplog.messages) == messages
    assert str(whole.folder) in caplog.text
    assert "\n" not in caplog.messages[0]
    assert sorted(p.suffix for p in (tmp_path / "blocks").iterdir()) == ["", ".lock"]


def _build(args: tuple[tuple[Documents, ...], PreTrainedTokenizerBase, DataConfig]) -> str:
    return build_blocks(*args).sha256


def test_several_processes_may_build_the_same_blocks(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.map(_build, [(documents[:1], tokenizer, config)] * 2, chunksize=1)
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


_KILLED = """
import os, signal, sys, pickle
from data.blocks import store as blocks
arguments = pickle.load(sys.stdin.buffer)
append = blocks._append

def and_die(file, form, new):
    append(file, form, new)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

blocks._append = and_die
blocks.build_blocks(*arguments)
"""


def test_a_preparation_that_is_killed_leaves_nothing_half_used(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    arguments = pickle.dumps((documents[:1], tokenizer, config))
    done = subprocess.run([sys.executable, "-c", _KILLED], input=arguments, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (half,) = (tmp_path / "blocks").glob("*.tmp")
    assert (half / "blocks.bin").stat().st_size > 0
    blocks = build_blocks(documents[:1], tokenizer, config)
    assert blocks.sha256 == build_blocks(documents[:1], tokenizer, data_config).sha256
    assert sorted(p.suffix for p in (tmp_path / "blocks").iterdir()) == ["", ".lock"]


def test_a_second_process_waits_and_makes_nothing(
    documents: Pair,
    tokenizer: PreTrainedTokenizerBase,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first holds the lock until the second waits for it; the second must not write."""
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path))
    waits, writers = threading.Event(), []
    write, acquire = blocks_module._write, blocks_module.FileLock.acquire

    def write_slowly(*arguments: object) -> None:
        writers.append(threading.current_thread().name)
        assert waits.wait(60)
        write(*arguments)  # type: ignore[arg-type]

    def acquire_and_tell(self: object, *arguments: object, **options: object) -> object:
        if threading.current_thread().name == "second":
            waits.set()
        return acquire(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks_module, "_write", write_slowly)
    monkeypatch.setattr(blocks_module.FileLock, "acquire", acquire_and_tell)
    found: list[TokenBlocks] = []

    def build() -> None:
        found.append(build_blocks(documents[:1], tokenizer, config))

    first, second = (threading.Thread(target=build, name=name) for name in ("first", "second"))
    first.start()
    while not writers:
        first.join(0.01)
    second.start()
    for thread in (first, second):
        thread.join()
    assert writers == ["first"]
    assert found[0].folder == found[1].folder


def test_at_most_max_blocks_are_made(
    documents: Pair, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(data_config, cache_dir=str(tmp_path), last_block="pad")
    whole = build_blocks(documents[:1], tokenizer, config)
    for most in (1, 7, len(whole) - 1, len(whole), len(whole) + 1):
        few = build_blocks(documents[:1], tokenizer, config, max_blocks=most)
        ids = np.arange(min(most, len(whole)))
        assert len(few) == len(ids)
        assert np.array_equal(few[ids], whole[ids])
        tokens = few[ids]
        assert few.counts.kept == (tokens != np.iinfo(tokens.dtype).max).sum()


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.one_of(UNICODE, st.just(""), st.just("huge \U0001f600" * 1000)), max_size=8),
    block_size=st.one_of(st.integers(2, 40), st.just(100_000)),
    grouping=st.sampled_from(["concatenate", "line_by_line", "pack"]),
    last_block=st.sampled_from(["drop", "pad"]),
    masking=st.sampled_from(["token", "whole_word", "span"]),
)
def test_between_any_texts_and_their_blocks_no_token_is_lost_and_no_special_one_masked(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], block_size: int, **changes: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["first", *texts]))
        config = DataConfig(dataset=str(path), eval_fraction=1e-9, cache_dir=folder, block_size=block_size, **changes)
        documents = open_documents(config)[0]
        wanted = [encode(tokenizer, [text]) for text in ["first", *texts] if text.strip()]
        tokens = np.concatenate(wanted)
        try:
            blocks = build_blocks(documents, tokenizer, config)
        except ValueError:
            assert changes["grouping"] == "concatenate"
            assert changes["last_block"] == "drop"
            assert len(tokens) < block_size
            return
        rows = blocks[np.arange(len(blocks))]
        flat = rows[rows != np.iinfo(rows.dtype).max]
        ids = flat & ID_MASK if rows.dtype == np.uint32 else flat
        counts = blocks.counts
        assert counts.documents == len(wanted)
        assert counts.kept == len(ids)
        assert counts.kept + counts.dropped == len(tokens)
        assert counts.kept + counts.padded == block_size * len(blocks)
        if changes["grouping"] == "concatenate":
            assert counts.dropped == (len(tokens) % block_size if changes["last_block"] == "drop" else 0)
            assert np.array_equal(ids, tokens[: len(ids)])
        else:
            assert counts.dropped == 0
            assert np.array_equal(np.sort(ids), np.sort(tokens))
            whole = all(len(document) <= block_size for document in wanted)
            if changes["grouping"] == "line_by_line" and whole:
                assert len(blocks) == len(wanted)
        assert np.array_equal(blocks.token_counts, np.bincount(tokens, minlength=vocab_size(tokenizer)))
        known = vocabulary(tokenizer)
        collator = Collator(known, 0, pad_token_id=tokenizer.pad_token_id, choose=config.choose)
        batch = collator(rows, np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64), np.full(len(rows), 0.9))
        assert not known.is_special[batch.labels.numpy()].any()
        restored = batch.input_ids.clone()
        restored.view(-1)[batch.masked_positions] = batch.labels
        mask = np.ones(restored.shape, bool) if batch.attention_mask is None else batch.attention_mask.numpy() == 1
        assert np.array_equal(restored.numpy()[mask], ids)
