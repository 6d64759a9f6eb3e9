"""What a model can be trained on. `OBJECTIVES` has them by the name of the setting ``objective``.

`masked_lm` is an objective: from a batch to the sums of its loss's terms. `masked_logits` computes the logits it needs
and no others, with the vocabulary's matrix as `logits` wants it. `checks` tries out what a model allows.
"""

from collections.abc import Callable

from train_loop.objective import Objective
from train_loop.objectives.masked_lm import MaskedLMObjective

# Built from the model and ``objective_kwargs``. A user's own class, or function, is found by who builds the run.
OBJECTIVES: dict[str, Callable[..., Objective]] = {"masked_lm": MaskedLMObjective}
