"""Which parameters an optimizer has."""

from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from train_loop.config import TrainConfig
from train_loop.optimizers.muon import Muon


def build_optimizers(objective: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """AdamW on all parameters of the objective, or Muon on the hidden matrices and AdamW on the rest.

    Weight decay is decoupled and applies to matrices and embeddings, not to norms and biases (all of one dimension).
    """
    hidden = _hidden_matrices(objective) if config.optimizer == "muon" else []
    hidden_ids = {id(p) for p in hidden}
    rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in hidden_ids]
    adamw = AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    if not hidden:
        return [adamw]
    return [Muon(hidden, lr=config.muon_learning_rate, weight_decay=config.weight_decay), adamw]


def _hidden_matrices(objective: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers, but not embeddings, the output layer, tied or not, and maps to one number.

    Muon makes all singular values of an update alike, which suits a map between hidden states and not a table of
    vectors (Jordan et al. 2024).
    """
    models = [module for module in objective.modules() if isinstance(module, PreTrainedModel)]
    heads = [head for model in models if (head := model.get_output_embeddings()) is not None]
    tables = {id(m.weight) for m in (*objective.modules(), *heads) if isinstance(m, nn.Embedding) or m in heads}
    matrices = {id(m.weight) for m in objective.modules() if isinstance(m, nn.Linear) and len(m.weight) > 1} - tables
    return [p for p in objective.parameters() if id(p) in matrices and p.requires_grad]
