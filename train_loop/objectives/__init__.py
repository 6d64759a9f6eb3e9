"""What a model can be trained on. `OBJECTIVES` has them by the name of the setting ``objective``.

`masked_lm` and `replaced_tokens` are objectives: from a batch to the sums of their terms. `masked_logits` computes the
logits they need and no others, with the vocabulary's matrix as `logits` wants it. `checks` tries what a model allows.
"""

from collections.abc import Callable

from train_loop.objective import Objective
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.objectives.replaced_tokens import ReplacedTokenObjective

# Built from the model and ``objective_kwargs``. A user's own class, or function, is found by who builds the run.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "masked_lm": MaskedLMObjective,
    "replaced_tokens": ReplacedTokenObjective,
}
