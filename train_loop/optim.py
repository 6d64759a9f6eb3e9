"""The schedule as a pure function of the step, and what an update asks of any optimizer."""

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from train_loop.config import TrainConfig


def build_schedule(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """A function from the update (from 0) to the factor on the peak learning rates, by transformers' schedules.

    Raises ValueError if the schedule does not take these options, or its parts are longer than the run.
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
# All schedules of transformers that are functions of the step; on a plateau and greedy are not.
SCHEDULES: dict[str, BuildSchedule] = {
    kind.value: build_schedule
    for kind in TYPE_TO_SCHEDULER_FUNCTION
    if kind.value not in ("reduce_lr_on_plateau", "greedy")
}


class WeightAverage(Optimizer):
    """The exponential moving average of the weights, in fp32, as an optimizer that steps after all others.

    So it is skipped with a skipped update, and its tensors are sharded, saved and resumed as any optimizer's. The
    weights of an update count ``decay`` times as much after the next one; all counts add up to one from the start.
    Between `eval` and `train` the parameters hold the average.
    """

    SLOT = "weight_average"
    _UPDATES = "weight_average_updates"  # of the first parameter, for all
    _step_supports_amp_scaling = True

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        super().__init__([p for p in parameters if p.requires_grad], {"lr": 0.0})
        self._decay = decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Add the weights as they are now."""
        parameters = self.param_groups[0]["params"]
        if not self.state:
            for p in parameters:
                self.state[p][self.SLOT] = p.float().clone()
            self.state[parameters[0]][self._UPDATES] = torch.zeros((), device=parameters[0].device)
        counts = 1 - getattr(self, "found_inf", 0.0)  # 0 for an update that is skipped
        updates = self.state[parameters[0]][self._UPDATES].add_(counts).double()
        share = counts * (1 - self._decay) / (1 - self._decay ** updates.clamp(min=1))
        for p in parameters:
            self.state[p][self.SLOT].add_((p - self.state[p][self.SLOT]) * share)

    @torch.no_grad()
    def eval(self) -> None:
        """Exchange the weights and their average."""
        for p, state in self.state.items():
            weights = p.clone()
            p.copy_(state[self.SLOT])
            state[self.SLOT].copy_(weights)

    train = eval


def all_optimizers(build: BuildOptimizers, objective: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """The optimizers that a function builds, and an average of the weights if the settings ask for one."""
    averages = [] if config.ema_decay is None else [WeightAverage(objective.parameters(), config.ema_decay)]
    return [*build(objective, config), *averages]


def step_unless(
    is_bad: Tensor, optimizers: Sequence[AcceleratedOptimizer], scaler: torch.amp.GradScaler | None
) -> None:
    """Step all optimizers, or none of them if the update is bad; then update fp16's loss scale once.

    Optimizers with torch's ``found_inf`` protocol, ours among them, read the flag on the device. For any other this
    waits for the device.
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
