"""Fills the masks of a text one after another, each given those already filled.

The pipeline fills each mask as if the others stayed masks, so its first choices need not fit each other. Here the score
is the product of the probabilities of the choices, each at the moment it is made. By the chain rule, this is the joint
probability of the fills in the order in which they are made.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from train_loop.inference.predictor import Choice, MaskPredictor, Query

JointMethod = Literal["left_to_right", "confidence", "beam"]
JOINT_METHODS: tuple[JointMethod, ...] = get_args(JointMethod)


class Filling(NamedTuple):
    """A text with some masks filled."""

    row: tuple[int, ...]  # [L] tokens
    masks: tuple[int, ...]  # positions that are still masks, in order
    log_prob: float  # the joint one of the tokens filled in


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
    beams = [[Filling(tuple(row), tuple(predictor.masks(row)), 0.0)] for row in rows]
    is_first = True
    while open_beams := [beam for beam in beams if beam[0].masks]:
        width = max(num_beams, top_k) if method == "beam" else top_k if is_first else 1
        fillings = [filling for beam in open_beams for filling in beam]
        queries = [Query(f.row, f.masks if method == "confidence" else f.masks[:1]) for f in fillings]
        found = iter(predictor.top_k(queries, width, batch_size))
        for beam in open_beams:
            new = [longer for filling in beam for longer in _fill_surest(filling, next(found))]
            beam[:] = sorted(new, key=lambda filling: -filling.log_prob)[: max(width, top_k)]
        is_first = False
    return [beam[:top_k] for beam in beams]


def _fill_surest(filling: Filling, choices: list[list[Choice]]) -> list[Filling]:
    """Fill the mask with the most probable choice, once with each; ``choices``: of all masks or of the first one."""
    which = max(range(len(choices)), key=lambda i: choices[i][0][0])
    position = filling.masks[which]
    masks = filling.masks[:which] + filling.masks[which + 1 :]
    return [
        Filling((*filling.row[:position], *pieces, *filling.row[position + 1 :]), masks, filling.log_prob + log_prob)
        for log_prob, pieces in choices[which]
    ]
