"""Streamed batches are those of one process whoever reads them, go on from anywhere, and hold each text once a pass."""

import copy
import dataclasses
import gzip
import io
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from data import (
    Collator,
    DataConfig,
    DataError,
    MaskedBatch,
    StreamCorpus,
    StreamLoader,
    open_documents,
    vocabulary,
)
from data.batches.loader import Place
from data.batches.streaming import Arrays, chunks
from data.blocks.tokens import flagged
from tests.batches import Row, constant, rows_of
from tests.conftest import sentences
from tests.files import write_texts
from tests.tokenizers import tokenizer_like

GLOBAL_BATCH = 6
TEXTS = [f"{i} {text}" for i, text in enumerate(sentences(60, 5))]
Write = Callable[..., DataConfig]


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """So that a few steps meet many of their ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.batches.streaming._BLOCKS_IN_CHUNK", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts in many formats."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("a.jsonl", "a.txt", "a.parquet", "a.jsonl.gz"):
        write_texts(folder / name, TEXTS)
    (folder / "many").mkdir()
    for i in range(7):
        write_texts(folder / "many" / f"{i}.csv", TEXTS[i::7])
    (folder / "three").mkdir()
    for i in range(3):
        write_texts(folder / "three" / f"{i}.jsonl.gz", TEXTS[i::3])
    write_texts(folder / "few.jsonl", TEXTS[:3])
    write_texts(folder / "b.txt", [f"other {i}" for i in range(20)])
    return folder


SOURCES = ["a.jsonl", "a.txt", "a.parquet", "a.jsonl.gz", "many", "three"]


def config_of(*sources: Path, **changes: Any) -> DataConfig:
    settings = {
        "dataset": str(sources[0]),
        "mixture": {str(source): 1.0 + i for i, source in enumerate(sources)} if len(sources) > 1 else {},
        "streaming": True,
        "num_streams": 5,
        "shuffle_buffer_size": 40,
        "eval_fraction": 1e-9,
        "block_size": 8,
        **changes,
    }
    return DataConfig(**settings)


def corpus_of(config: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int = 7) -> StreamCorpus:
    weights = tuple(config.mixture.values()) or (1.0,)
    return StreamCorpus(open_documents(config)[0], weights, tokenizer, config, seed)


def loader_of(corpus: StreamCorpus, rank: int = 0, num_processes: int = 1, state: Arrays | None = None) -> StreamLoader:
    collator = Collator(
        vocabulary(corpus.tokenizer), corpus.seed, corpus.tokenizer.pad_token_id or 0, choose=corpus.config.choose
    )
    return StreamLoader(
        corpus,
        collator,
        rates=constant,
        blocks_before=lambda step: step * GLOBAL_BATCH,
        micro_batch_size=4,
        place=Place(rank, num_processes),
        state_before=state or {},
    )


def run(
    corpus: StreamCorpus, start: int, stop: int, state: Arrays | None = None, num_processes: int = 1
) -> tuple[list[list[Row]], Arrays]:
    """The global batches of some steps by block id, put together from all processes, and the state after them."""
    batches: list[list[Row]] = [[] for _ in range(start, stop)]
    after: Arrays = {}
    for rank in range(num_processes):
        loader = loader_of(corpus, rank, num_processes, state)
        steps = list(loader.steps(start, stop))
        assert len(steps) == stop - start
        for rows, micro_batches in zip(batches, steps, strict=True):
            assert micro_batches
            rows += [row for batch in micro_batches if not is_stand_in(batch) for row in rows_of(batch)]
        assert not after.keys() & loader.state().keys()
        after |= loader.state()
    return [sorted(rows) for rows in batches], after


def is_stand_in(batch: MaskedBatch) -> bool:
    """A process without a share has one batch of no block, with nothing to predict."""
    return batch.num_tokens == batch.num_masked == 0


def texts_of(batch: MaskedBatch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that were there before masking."""
    ids = batch.input_ids.clone()
    ids.view(-1)[batch.masked_positions] = batch.labels
    return tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("source", SOURCES)
def test_global_batches_do_not_depend_on_processes(
    source: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = corpus_of(config_of(folder / source), tokenizer)
    reference, _ = run(corpus, 0, 8)
    assert all(len(rows) == GLOBAL_BATCH for rows in reference)
    for num_processes in (2, 3, 4):
        assert run(corpus, 0, 8, num_processes=num_processes)[0] == reference


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_global_batches_do_not_depend_on_workers(
    num_processes: int, num_workers: int, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_of(folder / "a.jsonl", folder / "three")
    reference, state = run(corpus_of(config, tokenizer), 0, 30)
    workers = corpus_of(dataclasses.replace(config, dataloader_num_workers=num_workers), tokenizer)
    found, after = run(workers, 0, 30, num_processes=num_processes)
    assert found == reference
    assert_same_state(after, state)


def assert_same_state(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert np.array_equal(array, other[name]), name


def test_a_process_without_a_share_has_a_batch_with_nothing_to_predict(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of 9 streams, 6 blocks an update: the first update has none of the streams 6, 7 and 8."""
    corpus = corpus_of(config_of(folder / "a.jsonl", num_streams=9), tokenizer)
    ((batch,),) = loader_of(corpus, rank=8, num_processes=9).steps(0, 1)
    assert is_stand_in(batch)
    assert run(corpus, 0, 6, num_processes=9)[0] == run(corpus, 0, 6)[0]


def test_fewer_streams_than_processes_is_a_clear_error(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"num_streams=5 is less than .* 6 processes: use --num_streams 6 or more"):
        loader_of(corpus_of(config_of(folder / "a.txt"), tokenizer), rank=0, num_processes=6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fewer_documents_than_streams_is_a_clear_error(
    num_workers: int, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    corpus = corpus_of(config_of(folder / "few.jsonl", dataloader_num_workers=num_workers), tokenizer)
    with pytest.raises(DataError, match=r"no text with a token for logical stream . of 5: use fewer --num_streams"):
        run(corpus, 0, 2)


@pytest.mark.parametrize("grouping", ["concatenate", "line_by_line", "pack"])
def test_texts_without_a_token_are_a_clear_error_and_no_endless_search(grouping: str, tmp_path: Path) -> None:
    """A BERT drops invisible characters; without special tokens nothing is left of them."""
    tokenizer = copy.deepcopy(tokenizer_like("bert"))
    tokenizer.backend_tokenizer.post_processor = None
    write_texts(tmp_path / "a.jsonl", ["\u200b\u200d"] * 50)
    corpus = corpus_of(config_of(tmp_path / "a.jsonl", grouping=grouping), tokenizer)
    with pytest.raises(DataError, match="no text with a token for logical stream 0 of 5"):
        run(corpus, 0, 1)
    write_texts(tmp_path / "a.jsonl", ["\u200b\u200d", "The cat"] * 25)
    run(corpus_of(config_of(tmp_path / "a.jsonl", grouping=grouping), tokenizer), 0, 1)


@pytest.mark.parametrize("source", SOURCES)
def test_each_document_is_read_once_a_pass_by_one_stream(
    source: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Blocks of one text each; the id of a block tells its stream, and which of the stream's blocks it is."""
    config = config_of(folder / source, grouping="line_by_line", block_size=64)
    corpus = corpus_of(config, tokenizer)
    read: dict[int, dict[int, str]] = {stream: {} for stream in range(config.num_streams)}
    for rank in range(2):
        for batches in loader_of(corpus, rank, 2).steps(0, 60):
            for batch in batches:
                for block_id, text in zip(batch.block_ids.tolist(), texts_of(batch, tokenizer), strict=True):
                    number, stream = divmod(block_id, config.num_streams)
                    assert number not in read[stream]
                    read[stream][number] = text
    owner: dict[str, int] = {}
    for stream, texts in read.items():
        size = len(set(texts.values()))
        for number, text in texts.items():
            assert owner.setdefault(text, stream) == stream  # by none but one stream
            if number - size in texts:
                assert texts[number - size] == text  # and pass after pass in the same order
        assert len(texts) > 2 * size
    assert sorted(owner) == sorted(TEXTS)


def test_every_pass_has_new_masks(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = corpus_of(config_of(folder / "b.txt", grouping="line_by_line", block_size=32), tokenizer)
    seen = Counter[str]()
    masked = set()
    for batches in loader_of(corpus).steps(0, 60):
        for batch in batches:
            for (_, _, positions, _), text in zip(rows_of(batch), texts_of(batch, tokenizer), strict=True):
                seen[text] += 1
                masked.add((text, positions))
    assert min(seen.values()) > 10
    assert len(masked) > 0.5 * seen.total()  # of a few tokens, some are masked alike by chance


RESUMES = given(
    step=st.integers(0, 40),
    before=st.sampled_from([1, 3]),
    after=st.sampled_from([1, 2]),
    num_workers=st.sampled_from([0, 0, 0, 0, 2]),
    source=st.sampled_from(SOURCES),
    grouping=st.sampled_from(["concatenate", "line_by_line", "pack"]),
    masking=st.sampled_from(["token", "whole_word"]),
    is_mixture=st.booleans(),
    shuffle_buffer_size=st.sampled_from([1, 40, 700]),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@RESUMES
def test_a_run_goes_on_from_any_state_as_if_it_had_not_stopped(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
    before: int,
    after: int,
    num_workers: int,
    source: str,
    is_mixture: bool,
    **changes: Any,
) -> None:
    sources = [folder / source, folder / "b.txt"][: 1 + is_mixture]
    corpus = corpus_of(config_of(*sources, dataloader_num_workers=num_workers, **changes), tokenizer)
    wanted, end = run(corpus, 0, step + 15)
    first, state = run(corpus, 0, step, num_processes=before)
    state = safetensors.numpy.load(safetensors.numpy.save(state))
    rest, found = run(corpus, step, step + 15, state, num_processes=after)
    assert first + rest == wanted
    assert_same_state(found, end)


def test_a_state_is_not_changed_by_what_comes_after(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """It is written by another thread while training goes on."""
    loader = loader_of(corpus_of(config_of(folder / "a.jsonl"), tokenizer))
    steps = loader.steps(0, 20)
    next(steps)
    state = loader.state()
    copies = {name: array.copy() for name, array in state.items()}
    list(steps)
    assert_same_state(state, copies)


LONG = 5000  # bytes of a row whose text becomes 16 tokens


@contextmanager
def counted_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Each text becomes 16 tokens that follow from its number, and is counted."""
    texts = Counter[str]()

    def encode(batch: list[str]) -> np.ndarray:
        texts.update(text.split()[0] for text in batch)
        ids = [5 + (int(text.split()[0]) * 31 + i * i) % 290 for text in batch for i in range(16)]
        return flagged(np.array(ids, dtype=np.uint32), np.full(len(batch), 16), None)

    with monkeypatch.context() as patch:
        patch.setattr("data.batches.streaming.encoder", lambda *_, **__: encode)
        yield texts


@contextmanager
def counted_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of all reads of files."""
    sizes: list[int] = []

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            size = super().readinto(buffer)
            sizes.append(size)
            return size

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: io.BufferedReader(Counted(path)))
        yield sizes


@pytest.mark.parametrize(
    ("name", "share_of_bytes"),
    [("a.jsonl", 0.15), ("a.txt", 0.15), ("a.parquet", 0.15), ("a.jsonl.gz", None), ("a.csv", None)],
)
def test_resuming_late_costs_what_resuming_early_costs(
    name: str,
    share_of_bytes: float | None,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,600 rows in 2 streams of 800, gone on with after 650 of each, for 30 blocks of each, 10 texts at once.

    Where a file can be entered, only a part of it is read; else rows are passed over untokenized.
    """
    generator = random.Random(0)
    path = write_texts(tmp_path / name, [f"{i} {generator.randbytes(LONG // 2).hex()}" for i in range(1600)])
    corpus = corpus_of(config_of(path, num_streams=2, block_size=16), tokenizer)
    with counted_encoder(monkeypatch) as texts:
        _, state = run(corpus, 0, 210)
        assert 1280 <= len(texts) < 1400
    with counted_encoder(monkeypatch) as texts, counted_bytes(monkeypatch) as sizes:
        run(corpus, 210, 220, state)
    assert 0 < texts.total() <= 2 * (30 + 8 + 10)
    if share_of_bytes is not None:
        assert 0 < sum(sizes) < share_of_bytes * path.stat().st_size


@pytest.mark.parametrize("num_streams", [1, 4])
def test_the_buffer_shuffles(num_streams: int, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ids of a stream's blocks in the order in which they are drawn.

    With a buffer of 400 a block waits 400 draws on average, so that over 100 draws
    nothing is left of the order in which the blocks came.
    """
    config = config_of(folder / "a.jsonl", num_streams=num_streams, shuffle_buffer_size=400 * num_streams)

    def drawn(seed: int) -> list[int]:
        steps = loader_of(corpus_of(config, tokenizer, seed)).steps(0, 100 * num_streams)
        ids = [i for batches in steps for batch in batches for i in batch.block_ids.tolist()]
        return [i for i in ids if i % num_streams == 0]

    first, second = drawn(0), drawn(1)
    assert len(first) == 600
    assert len(set(first)) == 600
    ranks = np.argsort(np.argsort(first[500:]))
    assert abs(np.corrcoef(ranks, np.arange(100))[0, 1]) < 0.4
    assert first[:50] != sorted(first[:50])  # from the start on
    assert len(set(zip(range(600), first, strict=True)) & set(zip(range(600), second, strict=True))) < 30


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_bad_row_in_the_middle_is_one_error_with_file_and_line(
    num_workers: int, name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / name, [*TEXTS[:40], "\0", *TEXTS[40:]])
    packed = path.read_bytes()
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(gzip.decompress(packed).replace(b'{"text": "\\u0000"}', b'{"text": 1}')))
    else:
        path.write_bytes(packed.replace(b'{"text": "\\u0000"}', b'{"text": 1}'))
    config = config_of(path, dataloader_num_workers=num_workers)
    with pytest.raises(
        DataError, match=rf"{name}, line 41: text_column='text' holds no text: 1; --on_bad_row skip"
    ) as kept:
        run(corpus_of(config, tokenizer), 0, 60)
    assert kept.traceback  # which holds the frames that hold the loader
    assert not multiprocessing.active_children()
    corpus = corpus_of(dataclasses.replace(config, on_bad_row="skip"), tokenizer)
    loader = loader_of(corpus)
    list(loader.steps(0, 60))
    assert loader.bad_rows > 0


def test_bad_rows_are_counted_once_a_pass_over_an_interruption_too(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n".join([*(text.encode() for text in TEXTS), b"\xff"]))
    corpus = corpus_of(config_of(tmp_path / "a.txt", on_bad_row="skip", num_streams=2), tokenizer)
    whole = loader_of(corpus)
    list(whole.steps(0, 60))
    assert whole.bad_rows > 1
    for step in (1, 20, 40):
        _, state = run(corpus, 0, step)
        rest = loader_of(corpus, state=state)
        list(rest.steps(step, 60))
        assert rest.bad_rows == whole.bad_rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_is_gone_is_one_error(num_workers: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", TEXTS)
    corpus = corpus_of(config_of(path, dataloader_num_workers=num_workers), tokenizer)
    path.unlink()
    with pytest.raises(DataError, match=r"FileNotFoundError: .*a\.jsonl"):
        run(corpus, 0, 2)


def sources_of(corpus: StreamCorpus, stream: int, count: int) -> list[int]:
    found: list[int] = []
    for chunk in chunks(corpus, stream, {}):
        found += chunk.sources.tolist()
        if len(found) >= count:
            return found[:count]
    raise AssertionError


def test_shares_of_a_mixture_are_exact_and_follow_from_the_seed(
    folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "data.batches.streaming.encoder", lambda *_, **__: lambda batch: np.zeros(400 * len(batch), np.uint32)
    )
    mixture = {str(folder / "a.jsonl"): 0.7, str(folder / "b.txt"): 0.2, str(folder / "a.parquet"): 0.1}
    config = config_of(folder / "a.jsonl", mixture=mixture)
    order = sources_of(corpus_of(config, tokenizer), 1, 3000)
    for i in range(3):
        assert np.bincount(order[i * 1000 : (i + 1) * 1000]).tolist() == [700, 200, 100]
    assert order[:1000] != order[1000:2000]
    others = dict(zip([str(folder / name) for name in ("a.txt", "many", "three")], mixture.values(), strict=True))
    assert sources_of(corpus_of(dataclasses.replace(config, mixture=others), tokenizer), 1, 1000) == order[:1000]
    assert sources_of(corpus_of(config, tokenizer, seed=8), 1, 1000) != order[:1000]
    assert sources_of(corpus_of(config, tokenizer), 2, 1000) != order[:1000]


@pytest.mark.parametrize("grouping", ["line_by_line", "concatenate"])
def test_a_source_that_runs_out_repeats_and_tokens_are_counted_by_source(
    grouping: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Texts of b.txt begin with 'other'; its 20 are met more often than the 60 of a.jsonl."""
    config = config_of(folder / "a.jsonl", folder / "b.txt", grouping=grouping, block_size=32)
    corpus = corpus_of(config, tokenizer)
    tokens, seen = [0, 0], [Counter[str](), Counter[str]()]
    loaders = [loader_of(corpus, rank, 2) for rank in range(2)]
    for loader in loaders:
        for batches in loader.steps(0, 80):
            for batch in batches:
                sizes = (
                    [batch.input_ids.shape[1]] * len(batch.block_ids)
                    if batch.attention_mask is None
                    else batch.attention_mask.sum(dim=1).tolist()
                )
                for size, text in zip(sizes, texts_of(batch, tokenizer), strict=True):
                    source = int("other" in text)
                    tokens[source] += size
                    seen[source][text] += 1
    assert sum(loader.tokens_by_source(80) for loader in loaders).tolist() == tokens
    if grouping == "line_by_line":
        assert min(seen[1].values()) > max(seen[0].values()) > 1
        assert set(seen[1]) == {f"other {i}" for i in range(20)}
        assert set(seen[0]) == set(TEXTS)
    _, state = run(corpus, 0, 30)
    rest = loader_of(corpus, state=state)
    list(rest.steps(30, 80))
    assert rest.tokens_by_source(80).tolist() == tokens
