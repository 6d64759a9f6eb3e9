"""Joint fills, against an exhaustive search over a tiny vocabulary."""

import itertools
import math
from typing import Any

import pytest
import torch

from tests.models import sharpened, tiny_model
from tests.tokenizers import tokenizer_like
from train_loop import FillMask

V = 9
TEXT = "[MASK] [MASK] [MASK]"


@pytest.fixture(scope="module")
def fill_mask() -> FillMask:
    """Of nine tokens, five of them special; sharpened, so that fills depend on each other."""
    model = sharpened(tiny_model("bert", vocab_size=V, seed=3), 6)
    return FillMask(model.eval(), tokenizer_like("bert"))


def distribution(fill_mask: FillMask, row: list[int], position: int) -> torch.Tensor:
    """log p of each token at a position, from the stock model."""
    with torch.no_grad():
        return fill_mask.model(torch.tensor([row])).logits[0, position].log_softmax(-1)


@pytest.fixture(scope="module")
def every_filling(fill_mask: FillMask) -> list[tuple[float, tuple[int, ...]]]:
    """(joint log-probability from left to right, tokens) of all V^3, the best first."""
    found = []
    row = fill_mask.tokenizer(TEXT)["input_ids"]
    first = distribution(fill_mask, row, 1)
    for a in range(V):
        second = distribution(fill_mask, [row[0], a, *row[2:]], 2)
        for b in range(V):
            third = distribution(fill_mask, [row[0], a, b, *row[3:]], 3)
            found += [((first[a] + second[b] + third[c]).item(), (a, b, c)) for c in range(V)]
    assert math.fsum(math.exp(log_prob) for log_prob, _ in found) == pytest.approx(1, rel=1e-5)
    return sorted(found, reverse=True)


def answers(fills: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [tuple(fill["token"]) for fill in fills]


@pytest.mark.parametrize("top_k", [1, 5])
def test_a_beam_as_wide_as_all_fillings_finds_the_best(
    fill_mask: FillMask, every_filling: list[tuple[float, tuple[int, ...]]], top_k: int
) -> None:
    fills = fill_mask(TEXT, joint="beam", num_beams=V**2, top_k=top_k)
    assert answers(fills) == [tokens for _, tokens in every_filling[:top_k]]
    assert [fill["score"] for fill in fills] == pytest.approx(
        [math.exp(log_prob) for log_prob, _ in every_filling[:top_k]], rel=1e-4
    )


def test_a_wider_beam_is_no_worse_and_a_beam_of_one_is_greedy(
    fill_mask: FillMask, every_filling: list[tuple[float, tuple[int, ...]]]
) -> None:
    best = [fill_mask(TEXT, joint="beam", num_beams=width, top_k=1)[0] for width in (1, 3, V**2)]
    assert best[0] == fill_mask(TEXT, joint="left_to_right", top_k=1)[0]
    assert best[-1]["score"] == pytest.approx(math.exp(every_filling[0][0]), rel=1e-4)
    assert max(fill["score"] for fill in best) == best[-1]["score"]


def test_left_to_right_starts_with_each_of_the_best_first_tokens(
    fill_mask: FillMask, every_filling: list[tuple[float, tuple[int, ...]]]
) -> None:
    row = fill_mask.tokenizer(TEXT)["input_ids"]
    expected = {}
    for a in distribution(fill_mask, row, 1).topk(4).indices.tolist():
        b = int(distribution(fill_mask, [row[0], a, *row[2:]], 2).argmax())
        c = int(distribution(fill_mask, [row[0], a, b, *row[3:]], 3).argmax())
        expected[(a, b, c)] = math.exp(next(p for p, tokens in every_filling if tokens == (a, b, c)))
    fills = fill_mask(TEXT, joint="left_to_right", top_k=4)
    assert answers(fills) == sorted(expected, key=lambda tokens: -expected[tokens])
    assert [fill["score"] for fill in fills] == pytest.approx(sorted(expected.values(), reverse=True), rel=1e-4)


def test_the_surest_mask_is_filled_first() -> None:
    """By hand: at each step, the largest probability at any mask; the fills beside it are taken into account."""
    text = "the [MASK] [MASK] cat [MASK]"
    tokenizer = tokenizer_like("bert")
    full = FillMask(sharpened(tiny_model("bert", seed=5)).eval(), tokenizer)
    row = tokenizer(text)["input_ids"]
    masks = [i for i, token in enumerate(row) if token == tokenizer.mask_token_id]
    order, log_prob = [], 0.0
    while left := [i for i in masks if i not in order]:
        value, position = max((distribution(full, row, i).max().item(), i) for i in left)
        token = int(distribution(full, row, position).argmax())
        order.append(position)
        row[position] = token
        log_prob += value
    assert order != masks, "left to right would be the same"
    (fill,) = full(text, joint="confidence", top_k=1)
    assert fill["token"] == [row[i] for i in masks]
    assert fill["score"] == pytest.approx(math.exp(log_prob), rel=1e-4)
    assert fill["token_str"] == [tokenizer.decode([row[i]]) for i in masks]
    assert fill["sequence"] == tokenizer.decode(row, skip_special_tokens=True)


@pytest.mark.parametrize("joint", ["left_to_right", "confidence", "beam"])
def test_one_mask_is_filled_as_ever(fill_mask: FillMask, joint: str) -> None:
    plain, fitted = fill_mask("[MASK]", top_k=4), fill_mask("[MASK]", top_k=4, joint=joint)
    assert [tuple(fill["token"]) for fill in fitted] == [(fill["token"],) for fill in plain]
    assert [fill["score"] for fill in fitted] == pytest.approx([fill["score"] for fill in plain])
    assert [fill["sequence"] for fill in fitted] == [fill["sequence"] for fill in plain]


@pytest.mark.parametrize("joint", ["left_to_right", "confidence", "beam"])
def test_texts_with_different_numbers_of_masks_share_batches(fill_mask: FillMask, joint: str) -> None:
    texts = [" ".join(["[MASK]"] * count) for count in (3, 1, 2, 3)]
    together = fill_mask(texts, joint=joint, top_k=3, batch_size=2)
    for text, fills in zip(texts, together, strict=True):
        alone = fill_mask(text, joint=joint, top_k=3)
        assert answers(fills) == answers(alone)
        assert [fill["score"] for fill in fills] == pytest.approx([fill["score"] for fill in alone], rel=1e-4)
    assert len(list(itertools.chain(*together))) == 12
