"""What an objective is: the terms of the loss, what is evaluated, and which model is saved. `objectives/` has ours."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from data.batch import MaskedBatch
from train_loop.config import TrainConfig


@dataclass(frozen=True)
class EvalMetrics:
    """Of one evaluation, over all processes. An objective adds fields of its own, which are logged by their names."""

    eval_loss: float  # the lowest is the best

    def row(self, tokens_per_byte: float) -> dict[str, float]:
        """The numbers to log, of a text of so many tokens in a byte, without special tokens."""
        return asdict(self)


class Objective(nn.Module, ABC):
    """The module that is trained, and that DDP wraps. It is built from a model and ``objective_kwargs``.

    The loss of an update, over its global batch, is::

        sum over the terms of: weight * (sum of the term over its predictions) / (number of its predictions)

    So an objective gives sums and counts, and never divides. All that it draws must follow from the batch (its block
    ids) and from torch's generator, which `train_step` seeds: a resumed run then draws the same.
    """

    auto_class: ClassVar[Any] = AutoModelForMaskedLM  # the class of transformers that opens the model
    terms: ClassVar[Mapping[str, float]] = {"loss": 1.0}  # the weight of each of the K terms of the loss, by name
    takes_documents = False  # whether its batches may be one row of documents, see `MaskedBatch.documents`

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model  # what is saved; all other weights of the objective are kept in the checkpoints alone

    @abstractmethod
    def count(self, batch: MaskedBatch) -> Sequence[int | Tensor]:
        """``[K]``: how many predictions each term has in a batch; int64 on the device where the host does not know."""

    @abstractmethod
    def forward(self, batch: MaskedBatch) -> Tensor:
        """``[K]`` fp32: the sum of each term over its predictions in the batch; 0 where there are none."""

    @abstractmethod
    def eval_sums(self, batch: MaskedBatch) -> Tensor:
        """Vector of sums over a batch, in evaluation mode. They are added up over all batches and processes."""

    @abstractmethod
    def eval_metrics(self, sums: Sequence[float]) -> EvalMetrics:
        """What an evaluation says, from the total of `eval_sums`."""

    def adapt(self, config: TrainConfig, block_size: int, *, document_attention: bool, has_padding: bool) -> None:
        """Try out what the model allows, once, on the run's device and at its precision.

        With ``has_padding`` blocks may be shorter than ``block_size``. Raises ValueError if a setting asks for
        something that the model does not allow.
        """

    @property
    def last_layer(self) -> nn.Module | None:
        """A layer of ``model`` whose shapes differ from batch to batch, so that it is not compiled; or None."""
        return None


def freeze_unused(objective: Objective) -> list[str]:
    """Freeze the parameters that the loss does not reach (some families keep a pooler) and return their names.

    DDP would wait for their gradients for ever. One forward and backward of two tokens finds them. Raises ValueError if
    the model does not compute at this precision, or with this attention.
    """
    batch = MaskedBatch.of_zeros(1, 2, num_masked=1, device=next(objective.parameters()).device)
    try:
        (sums := objective(batch)).sum().backward()
    except RuntimeError as error:
        config = objective.model.config
        raise ValueError(
            f"model_type {config.model_type!r} does not compute with attn_implementation="
            f"{config._attn_implementation} at this mixed_precision: {' '.join(str(error).split())}; "
            "change one of them"
        ) from error
    if not len(sums) == len(objective.count(batch)) == len(objective.terms) > 0:
        raise ValueError(f"objective: forward and count must give a number for each of the terms, {[*objective.terms]}")
    unused = [name for name, parameter in objective.named_parameters() if parameter.grad is None]
    objective.zero_grad(set_to_none=True)
    for name in unused:
        objective.get_parameter(name).requires_grad_(False)
    return unused
