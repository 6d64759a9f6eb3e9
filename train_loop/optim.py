"""Parameter groups, optimizers, and the schedule as a pure function of the step."""

import re
from collections.abc import Callable, Sequence

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from train_loop.config import TrainConfig


def build_optimizers(objective: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """AdamW on all parameters of the objective, or Muon on the hidden matrices and AdamW on the rest.

    Weight decay is decoupled and applies to matrices and embeddings, not to
    norms and biases (all that has one dimension).
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


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), which on a CPU iterates in fp32.

    torch iterates in bf16 everywhere. On a CPU without bf16 instructions that makes
    a product of two matrices of width 768 fifty times slower.

    Like torch's fused optimizers, it changes nothing while ``found_inf`` is not 0,
    and reads that on the device.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        found_inf = getattr(self, "found_inf", None)

        def put(target: Tensor, value: Tensor) -> None:
            target.copy_(value if found_inf is None else torch.where(found_inf > 0, target, value))

        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp(p.grad, 1 - momentum)
                update = p.grad.lerp(buffer, momentum)  # Nesterov's
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scaled_lr = lr * max(1, p.shape[0] / p.shape[1]) ** 0.5
                put(state["momentum_buffer"], buffer)
                put(p, (p * (1 - lr * group["weight_decay"])).add_(update, alpha=-scaled_lr))


def orthogonalize(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """The matrix with all singular values near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.float() if matrix.device.type == "cpu" else wide.bfloat16()
    x = x / x.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


def _hidden_matrices(objective: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers, but not embeddings and the output layer, even where it is not tied to them.

    Muon makes all singular values of an update alike, which suits a map between
    hidden states and not a table of vectors (Jordan et al. 2024).
    """
    models = [module for module in objective.modules() if isinstance(module, PreTrainedModel)]
    heads = [head for model in models if (head := model.get_output_embeddings()) is not None]
    tables = {id(m.weight) for m in (*objective.modules(), *heads) if isinstance(m, nn.Embedding) or m in heads}
    matrices = {id(m.weight) for m in objective.modules() if isinstance(m, nn.Linear)} - tables
    return [p for p in objective.parameters() if id(p) in matrices and p.requires_grad]


def build_schedule(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """A function from the update (from 0) to the factor on the peak learning rates, by transformers' schedules.

    Raises:
        ValueError: The schedule does not take these options, or its parts are longer than the run.
    """
    name, options = config.lr_scheduler_type, config.lr_scheduler_kwargs
    parts = {"warmup_steps": config.warmup_steps}
    parts |= {key: value for key, value in options.items() if re.fullmatch(r"num_\w+_steps", key)}
    try:
        updates = {key: value * total_steps if value < 1 else value for key, value in parts.items()}
        whole = {key: round(value) for key, value in updates.items()}
        num_warmup_steps = whole.pop("warmup_steps")
        # Some schedules end at an absolute rate, so they look at the peak.
        peak = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        scheduler = get_scheduler(name, peak, num_warmup_steps, total_steps, {**options, **whole})
        factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    except (ValueError, TypeError, AttributeError) as error:
        way_out = "; a recipe's options go by --lr_scheduler_kwargs none" if options else ""
        shown = f"lr_scheduler_type={name!r} with lr_scheduler_kwargs={options}"
        raise ValueError(f"{shown}: {error}{way_out}") from error
    if sum(updates.values()) > total_steps:
        shown = " and ".join(f"{key}={value}" for key, value in parts.items() if value)
        raise ValueError(
            f"{shown} are more than the run's {total_steps} updates: use values below 1, which are fractions of the "
            "run, or a larger --max_steps"
        )
    return factor


# (objective, config) -> optimizers at their peak learning rates; (config, total_steps) -> step -> factor on them.
# A user's own function has the same form.
BuildOptimizers = Callable[[nn.Module, TrainConfig], list[Optimizer]]
BuildSchedule = Callable[[TrainConfig, int], Callable[[int], float]]
OPTIMIZERS: dict[str, BuildOptimizers] = {"adamw": build_optimizers, "muon": build_optimizers}
# All schedules of transformers that are functions of the step; on a plateau and greedy are not.
SCHEDULES: dict[str, BuildSchedule] = {
    kind.value: build_schedule
    for kind in TYPE_TO_SCHEDULER_FUNCTION
    if kind.value not in ("reduce_lr_on_plateau", "greedy")
}


def step_unless(
    is_bad: Tensor, optimizers: Sequence[AcceleratedOptimizer], scaler: torch.amp.GradScaler | None
) -> None:
    """Step all optimizers, or none of them if the update is bad; then update fp16's loss scale once.

    Optimizers with torch's ``found_inf`` protocol, ours among them, read the flag on
    the device. For any other this waits for the device.
    """
    for optimizer in (prepared.optimizer for prepared in optimizers):
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = is_bad.float()
            optimizer.step()
            del optimizer.found_inf
        elif not is_bad:
            optimizer.step()
    if scaler is not None:
        scaler.update()


def set_learning_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Set each group's learning rate to its peak times the schedule's factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
