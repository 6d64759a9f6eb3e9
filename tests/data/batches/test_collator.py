"""Batches of padded, packed and flagged blocks: the same for a block in any company, and right for a model."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data import Collator, DataConfig, Documents, MaskedBatch, TokenBlocks, build_blocks, open_documents, vocabulary
from data.batches.masking import MASKINGS, choose_token
from tests.models import tiny_model, without_dropout
from train_loop import MaskedLogits

TEXTS = ["the cat sat", "two dogs run after one red ball over every green hill in town", "on a mat", "it saw a cat"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Documents]:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"{text} {i}" for i in range(30) for text in TEXTS))
    return open_documents(DataConfig(dataset=str(path), eval_fraction=1e-9))[0]


def _blocks(
    texts: list[Documents], tokenizer: PreTrainedTokenizerBase, cache: Path, **settings: object
) -> tuple[TokenBlocks, Collator]:
    masks = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}  # as diffusion needs it; the collator has its own
    config = DataConfig(**{"block_size": 48, "cache_dir": str(cache), **masks, **settings})  # type: ignore[arg-type]
    collator = Collator(
        vocabulary(tokenizer),
        seed=0,
        pad_token_id=tokenizer.pad_token_id,
        choose=config.choose,
        document_attention=config.document_attention,
        trims=config.grouping == "line_by_line",
    )
    return build_blocks(texts, tokenizer, config), collator


@pytest.mark.parametrize("grouping", ["concatenate", "line_by_line", "pack"])
@pytest.mark.parametrize("masking", MASKINGS)
def test_a_block_is_masked_alike_in_any_company(
    texts: list[Documents], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, grouping: str, masking: str
) -> None:
    blocks, collator = _blocks(
        texts,
        tokenizer,
        tmp_path,
        grouping=grouping,
        masking=masking,
        document_attention=True,
        last_block="pad",
    )
    ids = np.arange(min(12, len(blocks)))
    together = collator(blocks[ids], ids, np.zeros_like(ids), np.full(len(ids), np.full(len(ids), 0.3)))
    width = together.input_ids.shape[1]
    assert together.num_masked > 0
    for i in ids:
        alone = collator(blocks[ids[i : i + 1]], ids[i : i + 1], np.zeros(1, np.int64), np.array([0.3]))
        length = alone.input_ids.shape[1]
        assert length <= width
        assert torch.equal(alone.input_ids[0], together.input_ids[i, :length])
        mine = together.masked_positions // width == i
        assert torch.equal(alone.masked_positions, together.masked_positions[mine] - i * width)
        assert torch.equal(alone.labels, together.labels[mine])
        assert alone.position_ids is not None
        assert together.position_ids is not None
        assert torch.equal(alone.position_ids[0], together.position_ids[i, :length])


@pytest.mark.parametrize("document_attention", [False, True])
@pytest.mark.parametrize("grouping", ["concatenate", "line_by_line", "pack"])
@pytest.mark.parametrize("masking", MASKINGS)
def test_side_by_side_each_document_is_as_it_is_in_its_block(
    texts: list[Documents],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    grouping: str,
    masking: str,
    document_attention: bool,
) -> None:
    """The same tokens, masks, labels and positions, in one row; the shortest documents first."""
    blocks, collator = _blocks(
        texts, tokenizer, tmp_path,
        grouping=grouping, masking=masking, document_attention=document_attention, last_block="pad",
    )  # fmt: skip
    ids = np.arange(min(12, len(blocks)))[::-1].copy()
    flat, padded = (
        dataclasses.replace(collator, is_flat=is_flat)(blocks[ids], ids, np.zeros_like(ids), np.full(len(ids), 0.3))
        for is_flat in (True, False)
    )
    assert flat.position_ids is not None
    assert flat.documents is not None
    lengths = list(flat.documents.lengths)
    assert flat.attention_mask is None
    assert flat.input_ids.shape == flat.position_ids.shape == (1, flat.num_tokens) == (1, sum(lengths))
    assert lengths == sorted(lengths)
    assert flat.documents.borders.tolist() == [0, *itertools.accumulate(lengths)]
    assert flat.position_ids[0].tolist() == [i for length in lengths for i in range(length)]
    assert torch.equal(flat.block_ids, padded.block_ids)

    def described(batch: MaskedBatch, spans: list[tuple[int, int]]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        predictions = list(zip(batch.masked_positions.tolist(), batch.labels.tolist(), strict=True))
        flat_ids = batch.input_ids.flatten().tolist()
        return sorted(
            (flat_ids[a:b], sorted((p - a, label) for p, label in predictions if a <= p < b)) for a, b in spans
        )

    expected = []
    width = padded.input_ids.shape[1]
    present = torch.ones_like(padded.input_ids) if padded.attention_mask is None else padded.attention_mask
    for row, length in enumerate(present.sum(1).tolist()):
        starts = [0]
        if document_attention:
            assert padded.position_ids is not None
            starts = torch.nonzero(padded.position_ids[row, :length] == 0).flatten().tolist()
        expected += [(row * width + a, row * width + b) for a, b in itertools.pairwise([*starts, length])]
    found = list(itertools.pairwise(flat.documents.borders.tolist()))
    assert described(flat, found) == described(padded, expected)
    assert flat.num_masked == padded.num_masked > 0


def test_line_by_line_is_as_wide_as_its_longest_text_and_masks_its_padding(
    texts: list[Documents], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    blocks, collator = _blocks(texts, tokenizer, tmp_path, grouping="line_by_line")
    assert blocks.lengths is not None
    assert len(blocks) == len(TEXTS) * 30
    ids = np.argsort(blocks.lengths)[:5]
    batch = collator(blocks[ids], ids, np.zeros(5, np.int64), np.full(5, np.full(len(ids), 0.15)))
    longest = int(blocks.lengths[ids].max())
    assert batch.input_ids.shape[1] == -(-longest // 8) * 8 < 48
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == blocks.lengths[ids].tolist()
    assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
@pytest.mark.parametrize("grouping", ["pack", "concatenate"])
def test_packed_documents_have_the_logits_of_each_document_alone(
    texts: list[Documents], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str, grouping: str
) -> None:
    blocks, collator = _blocks(texts, tokenizer, tmp_path, grouping=grouping, document_attention=True)
    ids = np.arange(4)
    batch = collator(blocks[ids], ids, np.zeros_like(ids), np.full(len(ids), np.full(len(ids), 0.3)))
    assert batch.position_ids is not None
    logits = MaskedLogits(without_dropout(tiny_model(family)).eval())
    packed = logits(batch.input_ids, batch.masked_positions, batch.attention_mask, position_ids=batch.position_ids)
    apart = []
    present = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    num_documents = 0
    for row in range(4):
        length = int(present[row].sum())
        starts = [*torch.nonzero(batch.position_ids[row, :length] == 0).flatten().tolist(), length]
        for start, end in itertools.pairwise(starts):
            num_documents += 1
            first = row * batch.input_ids.shape[1]
            mine = (batch.masked_positions >= first + start) & (batch.masked_positions < first + end)
            positions = batch.masked_positions[mine] - first - start
            apart.append(logits(batch.input_ids[row : row + 1, start:end], positions))
    assert num_documents > 6
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-5, atol=1e-5)


def test_documents_start_at_zero_and_a_cut_one_starts_again(
    texts: list[Documents], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Each ``<s>`` is at position 0, and so is the first token of a block that begins within a text."""
    blocks, collator = _blocks(texts, tokenizer, tmp_path, block_size=20, document_attention=True)
    ids = np.arange(10)
    plain = dataclasses.replace(collator, choose=choose_token)
    batch = plain(blocks[ids], ids, np.zeros_like(ids), np.full(len(ids), 1e-9))
    assert batch.position_ids is not None
    starts = (batch.input_ids == tokenizer.bos_token_id) | (torch.arange(20) == 0)
    assert torch.equal(batch.position_ids == 0, starts)
    steps = batch.position_ids[:, 1:] - batch.position_ids[:, :-1]
    assert ((steps == 1) | starts[:, 1:]).all()
