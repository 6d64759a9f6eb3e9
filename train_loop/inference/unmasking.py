"""Fills the masks of a text step by step, each step given the tokens of those before: joint fills, and generated text.

The pipeline fills each mask as if the others stayed masks, so its first choices need not fit each other. Here the score
is the product of the probabilities of the choices, each at the moment it is made. By the chain rule, this is the joint
probability of the fills in the order in which they are made, where a step makes one choice.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from train_loop.inference.predictor import Choice, MaskPredictor, Query

JointMethod = Literal["left_to_right", "confidence", "beam"]
JOINT_METHODS: tuple[JointMethod, ...] = get_args(JointMethod)
Order = Literal["confidence", "remask", "random", "left_to_right"]
ORDERS: tuple[Order, ...] = get_args(Order)


class Filling(NamedTuple):
    """A text with some masks filled."""

    row: tuple[int, ...]  # [L] tokens
    masks: tuple[int, ...]  # positions that are still masks, in order
    log_probs: dict[int, float]  # by position, of the tokens filled in when they were

    @classmethod
    def of(cls, predictor: MaskPredictor, row: Sequence[int]) -> "Filling":
        """A row before its masks are filled."""
        return cls(tuple(row), tuple(predictor.masks(row)), {})

    @property
    def log_prob(self) -> float:
        """The joint one of the tokens filled in."""
        return sum(self.log_probs.values())

    def filled(self, chosen: dict[int, Choice]) -> "Filling":
        """With tokens at some of the masks."""
        row = tuple(chosen[i][1][0] if i in chosen else token for i, token in enumerate(self.row))
        masks = tuple(i for i in self.masks if i not in chosen)
        return Filling(row, masks, self.log_probs | {i: log_prob for i, (log_prob, _) in chosen.items()})

    def masked(self, positions: Sequence[int], mask: int) -> "Filling":
        """With masks again at some positions that were filled."""
        row = tuple(mask if i in positions else token for i, token in enumerate(self.row))
        kept = {i: log_prob for i, log_prob in self.log_probs.items() if i not in positions}
        return Filling(row, tuple(sorted({*self.masks, *positions})), kept)


def unmask(
    predictor: MaskPredictor,
    fillings: Sequence[Filling],
    order: Order,
    *,
    num_steps: int | None = None,  # in which the masks of a text are filled; None: one mask a step
    top_k: int = 1,  # the most probable tokens at a mask, of which one is drawn
    temperature: float = 1.0,  # of the draws
    excluded: frozenset[int] = frozenset(),  # tokens that are not filled in
    seed: int = 0,  # of the draws, together with the number of the text
    batch_size: int,
) -> Iterator[list[Filling]]:
    """Yield the texts as they are, and after each step, until they have no masks. The order says which a step fills.

    ``confidence``: those whose tokens are the surest. ``remask``: likewise, and the least sure of the tokens filled
    before become masks again (Mask-Predict, Ghazvininejad et al. 2019). ``random``: any, as masked diffusion's own
    process does (MDLM, Sahoo et al. 2024). ``left_to_right``: the first ones.
    """
    texts = list(fillings)
    draws = [random.Random(f"{seed} {i}") for i in range(len(texts))]
    totals = [len(text.masks) for text in texts]
    steps = [min(num_steps or total, total) for total in totals]
    for step in itertools.count(1):
        yield list(texts)
        rests = {i: totals[i] * (steps[i] - step) // steps[i] for i, text in enumerate(texts) if text.masks}
        if not rests:
            return
        ends = [len(texts[i].masks) - rest * (order == "left_to_right") for i, rest in rests.items()]
        queries = [Query(texts[i].row, texts[i].masks[:end]) for i, end in zip(rests, ends, strict=True)]
        found = predictor.top_k(queries, top_k + len(excluded), batch_size)
        for (i, rest), query, choices in zip(rests.items(), queries, found, strict=True):
            allowed = ([one for one in of_mask if one[1][0] not in excluded][:top_k] for of_mask in choices)
            drawn = (draws[i].choices(of, [math.exp((p - of[0][0]) / temperature) for p, _ in of])[0] for of in allowed)
            chosen = dict(zip(query.positions, drawn, strict=True))
            text = texts[i].filled(chosen)
            ranks = {  # the lowest become masks again
                k: (order != "remask" and k not in chosen, draws[i].random() if order == "random" else p)
                for k, p in text.log_probs.items()
            }
            again = sorted(ranks, key=lambda k: ranks[k])[: rest - len(text.masks)]
            texts[i] = text.masked(again, predictor.tokenizer.mask_token_id)


def fill_jointly(
    predictor: MaskPredictor,
    rows: Sequence[Sequence[int]],
    method: JointMethod,
    *,
    top_k: int,  # K fillings for each row, or all of them where there are fewer
    num_beams: int,  # the width of the beam; at least K fillings are kept
    batch_size: int,
) -> list[list[Filling]]:
    """The fillings of each row's masks, the most probable first. The method says which mask is next, and what is kept.

    ``left_to_right``: the K best tokens of the first mask, each followed by the best token of every next mask.
    ``confidence``: the same, but each time the mask with the most probable token is filled (the decoding of
    Ghazvininejad et al. 2019, Mask-Predict, one token at a time).
    ``beam``: from left to right, and the ``num_beams`` best fillings are kept. With as many beams as there are
    fillings, it finds the most probable one.
    """
    beams = [[Filling.of(predictor, row)] for row in rows]
    width = max(num_beams, top_k) if method == "beam" else top_k
    while open_beams := [beam for beam in beams if beam[0].masks]:
        fillings = [filling for beam in open_beams for filling in beam]
        queries = [Query(f.row, f.masks if method == "confidence" else f.masks[:1]) for f in fillings]
        found = iter(predictor.top_k(queries, width, batch_size))
        for beam in open_beams:
            new = [longer for filling in beam for longer in _fill_surest(filling, next(found))]
            beam[:] = sorted(new, key=lambda filling: -filling.log_prob)[:width]
        if method != "beam":
            *_, ended = unmask(predictor, [f for beam in beams for f in beam], method, batch_size=batch_size)
            of_all = iter(ended)
            beams = [sorted((next(of_all) for _ in beam), key=lambda filling: -filling.log_prob) for beam in beams]
    return [beam[:top_k] for beam in beams]


def _fill_surest(filling: Filling, choices: list[list[Choice]]) -> list[Filling]:
    """Fill the mask with the most probable choice, once with each; ``choices``: of all masks or of the first one."""
    which = max(range(len(choices)), key=lambda i: choices[i][0][0])
    return [filling.filled({filling.masks[which]: choice}) for choice in choices[which]]
