"""Fill the masks of a text one after another, each given those already filled.

The pipeline fills each as if the others stayed masks, so that its first choices
need not fit each other. Here the score is the product of the probabilities at the
moment of each choice, by the chain rule: the joint probability of the fills in the
order in which they were made.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from train_loop.inference.predictor import MaskPredictor, Query

JointMethod = Literal["left_to_right", "confidence", "beam"]
JOINT_METHODS: tuple[JointMethod, ...] = ("left_to_right", "confidence", "beam")


class Filling(NamedTuple):
    """A text with some masks filled.

    Attributes:
        row: ``[L]`` tokens.
        masks: Positions that are still masks, in order.
        log_prob: Of what was filled in.
    """

    row: tuple[int, ...]
    masks: tuple[int, ...]
    log_prob: float


def fill_jointly(
    predictor: MaskPredictor,
    rows: Sequence[Sequence[int]],
    method: JointMethod,
    *,
    top_k: int,
    num_beams: int,
    batch_size: int,
) -> list[list[Filling]]:
    """The fillings of each row's masks, the most probable first.

    Args:
        method: What is filled next, and what is kept.
            ``left_to_right``: the K best of the first mask, each followed by the best of every next one.
            ``confidence``: the same, the mask with the most probable fill going first each time
            (as the decoding of Ghazvininejad et al. 2019, Mask-Predict, one token at a time).
            ``beam``: from left to right, the ``num_beams`` best fillings being kept; as many beams as
            there are fillings find the most probable one.
        top_k: K fillings for each row.
        num_beams: At least K are kept.

    Returns:
        For each row, K fillings; fewer where there are not so many.
    """
    beams = [[Filling(tuple(row), tuple(predictor.masks(row)), 0.0)] for row in rows]
    is_first = True
    while open_beams := [beam for beam in beams if beam[0].masks]:
        width = max(num_beams, top_k) if method == "beam" else top_k if is_first else 1
        fillings = [filling for beam in open_beams for filling in beam]
        candidates = iter(_next(predictor, fillings, width, batch_size, most_confident=method == "confidence"))
        for beam in open_beams:
            new = [filling for _ in beam for filling in next(candidates)]
            beam[:] = sorted(new, key=lambda filling: -filling.log_prob)[: max(width, top_k)]
        is_first = False
    return [beam[:top_k] for beam in beams]


def _next(
    predictor: MaskPredictor, fillings: Sequence[Filling], width: int, batch_size: int, *, most_confident: bool
) -> list[list[Filling]]:
    """Each filling with one mask more filled, in the ``width`` best ways."""
    queries = [Query(f.row, f.masks if most_confident else f.masks[:1]) for f in fillings]
    result: list[list[Filling]] = [[] for _ in fillings]
    for indices, logits_MV in predictor.batches(queries, batch_size):
        values_MK, tokens_MK = logits_MV.topk(min(width, logits_MV.shape[1]))
        log_probs_MK = values_MK - logits_MV.logsumexp(-1, keepdim=True)
        lengths = [len(queries[i].positions) for i in indices]
        parts = zip(
            indices, torch.split(log_probs_MK.cpu(), lengths), torch.split(tokens_MK.cpu(), lengths), strict=True
        )
        for i, log_probs, tokens in parts:
            best = int(torch.argmax(log_probs[:, 0]))
            result[i] = [
                _filled(fillings[i], best, token, log_prob)
                for log_prob, token in zip(log_probs[best].tolist(), tokens[best].tolist(), strict=True)
            ]
    return result


def _filled(filling: Filling, which: int, token: int, log_prob: float) -> Filling:
    position = filling.masks[which]
    return Filling(
        (*filling.row[:position], token, *filling.row[position + 1 :]),
        filling.masks[:which] + filling.masks[which + 1 :],
        filling.log_prob + log_prob,
    )
