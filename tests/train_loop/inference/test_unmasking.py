"""Joint fills, against an exhaustive search over a tiny vocabulary."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import scipy.stats
import torch

from tests.models import sharpened, tiny_model
from tests.tokenizers import tokenizer_like
from train_loop import FillMask
from train_loop.inference.unmasking import ORDERS, Filling, Order, unmask

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


def _generate(fill_mask: FillMask, *texts: str, **settings: Any) -> list[str]:
    return fill_mask.generate(texts, **{"temperature": 1e-6, "top_k": 1, **settings})


@pytest.fixture(scope="module")
def writer() -> FillMask:
    return FillMask(sharpened(tiny_model("bert", seed=5)).eval(), tokenizer_like("bert"))


def test_one_mask_a_step_without_chance_is_the_joint_fill(writer: FillMask) -> None:
    text = "the [MASK] [MASK] cat [MASK]"
    for order in ("confidence", "left_to_right"):
        (fill,) = writer(text, joint=order, top_k=1)
        special = {*writer.tokenizer.all_special_ids}
        assert not special & {*fill["token"]}, "the joint fill may write special tokens, and generate does not"
        assert _generate(writer, text, order=order) == [fill["sequence"]]


def _steps(writer: FillMask, texts: list[str], **settings: Any) -> list[list[tuple[int, ...]]]:
    """The rows of each text after each step."""
    fillings = [Filling.of(writer, row) for row in writer.encode(texts)]
    how = {"top_k": 5, "batch_size": 8, **settings}
    return list(zip(*([filling.row for filling in step] for step in unmask(writer, fillings, **how)), strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_prompts_stay_and_all_masks_are_filled_in_as_many_steps_as_asked_for(writer: FillMask, order: Order) -> None:
    texts = ["the cat" + 6 * " [MASK]", "the [MASK] cat" + 6 * " [MASK]", "the cat" + 6 * " [MASK]"]
    settings: dict[str, Any] = {"order": order, "num_steps": 4, "excluded": frozenset(writer.tokenizer.all_special_ids)}
    found = _steps(writer, texts, **settings)
    mask = writer.tokenizer.mask_token_id
    assert [[row.count(mask) for row in steps] for steps in found] == [
        [6, 4, 3, 1, 0],
        [7, 5, 3, 1, 0],
        [6, 4, 3, 1, 0],
    ]
    for first, *_, last in found:
        assert all(b == a for a, b in zip(first, last, strict=True) if a != mask)
        assert not settings["excluded"] & {b for a, b in zip(first, last, strict=True) if a == mask}
    assert found[0][-1] != found[2][-1], "each text has draws of its own"
    assert _steps(writer, texts, **settings, batch_size=1) == found
    assert _steps(writer, texts, **settings, seed=1) != found


def test_remasking_may_change_a_token_and_the_other_orders_do_not(writer: FillMask) -> None:
    mask = writer.tokenizer.mask_token_id

    def num_changed(order: Order) -> int:
        pairs = [
            p for steps in _steps(writer, ["the" + 8 * " [MASK]"] * 9, order=order) for p in itertools.pairwise(steps)
        ]
        return sum(a not in (mask, b) for before, after in pairs for a, b in zip(before, after, strict=True))

    assert {order: num_changed(order) > 0 for order in ORDERS} == {order: order == "remask" for order in ORDERS}


def test_left_to_right_at_temperature_one_draws_from_the_joint_distribution(
    fill_mask: FillMask, every_filling: list[tuple[float, tuple[int, ...]]]
) -> None:
    """Of the 9 tokens 4 may be written: 64 texts, by the chain rule over those 4; a chi-squared test at 1e-4."""
    special = {*fill_mask.tokenizer.all_special_ids}
    words = [token for token in range(V) if token not in special]
    row = fill_mask.tokenizer(TEXT)["input_ids"]

    def chances(tokens: tuple[int, ...]) -> torch.Tensor:
        filled = [row[0], *tokens, *row[1 + len(tokens) :]]
        return distribution(fill_mask, filled, 1 + len(tokens))[words].softmax(-1).double()

    expected = {
        (a, b, c): float(p_a * p_b * p_c)
        for a, p_a in zip(words, chances(()), strict=True)
        for b, p_b in zip(words, chances((a,)), strict=True)
        for c, p_c in zip(words, chances((a, b)), strict=True)
    }
    num_texts = 1500
    settings: dict[str, Any] = {"order": "left_to_right", "top_k": V, "temperature": 1.0, "batch_size": 500}
    found = Counter(_generate(fill_mask, *[TEXT] * num_texts, **settings))
    decoded = {fill_mask.tokenizer.decode(list(tokens)): p * num_texts for tokens, p in expected.items()}
    assert found.keys() <= decoded.keys()
    rare = sum(count for count in decoded.values() if count < 5)
    frequent = {text: count for text, count in decoded.items() if count >= 5}
    statistic = sum((found[text] - count) ** 2 / count for text, count in frequent.items())
    of_rare = num_texts - sum(found[text] for text in frequent)
    statistic += (of_rare - rare) ** 2 / max(rare, 1)
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-4, len(frequent))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be 1 or more"),
        ({"temperature": 0}, "temperature=0 above 0"),
        ({"num_tokens": -1}, "num_tokens=-1 must be 0 or more"),
        ({"order": "any"}, "order='any' must be one of confidence, remask, random, left_to_right"),
        ({}, "no mask token in 'the cat' \\(text 1\\)"),
        ({"num_tokens": 5000}, "is longer than the model's"),
    ],
)
def test_what_cannot_be_generated_is_said(writer: FillMask, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writer.generate(["the cat"], **settings)
