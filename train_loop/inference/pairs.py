"""Minimal pairs: of two sentences that differ in one point of grammar, which is more probable to a model?

It is asked as in BLiMP (Warstadt et al. 2020), by pseudo-log-likelihood (Salazar et al. 2020, section 4.2).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from train_loop.inference.scoring import TextScorer

T_95 = {5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # number of figures -> Student's t of a mean


class Pair(NamedTuple):
    """A sentence, a worse one, and what they are about."""

    good: str
    bad: str
    group: str


class Score(NamedTuple):
    """How many of some questions a model answers right, with the ends of a 95 % interval."""

    num: int
    accuracy: float
    low: float
    high: float


def judge(
    score: TextScorer, pairs: Iterable[Pair], *, within_word: bool = False, batch_size: int = 32
) -> dict[str, Score]:
    """The accuracy in each group of pairs, and in ``all``. Equally probable sentences count half.

    The intervals are Wilson's (1927). They take the pairs for independent, which pairs of one template are not quite.
    ``within_word`` and ``batch_size`` are those of `TextScorer`.
    """
    given, texts = itertools.tee(pairs)
    scored = score((text for pair in texts for text in pair[:2]), within_word=within_word, batch_size=batch_size)
    right: dict[str, list[float]] = defaultdict(list)
    for pair in given:
        good, bad = (next(scored).pseudo_log_likelihood for _ in range(2))
        right[pair.group].append(1.0 if good > bad else 0.5 * (good == bad))
    groups = {**dict(sorted(right.items())), "all": list(itertools.chain.from_iterable(right.values()))}
    return {group: _wilson(sum(answers) / len(answers), len(answers)) for group, answers in groups.items() if answers}


def _wilson(share: float, num: int, z: float = 1.96) -> Score:
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2) / (1 + z * z / num)
    return Score(num, share, max(0.0, middle - half), min(1.0, middle + half))
