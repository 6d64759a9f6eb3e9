"""Cadence: when to step, log, evaluate, save and stop. What each of them means is elsewhere."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import distributed, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import MaskedBatch
from train_loop.arithmetic import Arithmetic
from train_loop.checkpoint import CheckpointWriter, TrainState, checkpoint_folder, remove_old, save_model
from train_loop.config import BatchPlan, TrainConfig
from train_loop.evaluate import EvalMetrics, evaluate
from train_loop.metrics import MetricsFile, TrainWindow
from train_loop.model import load_model
from train_loop.objective import MaskedLMObjective
from train_loop.probes import fill_probes
from train_loop.profiler import StepProfiler
from train_loop.progress import Progress
from train_loop.report import LiveReport
from train_loop.step import StepMetrics, non_finite_error, train_step
from train_loop.trackers import track


class Stopped(Exception):
    """Somebody asked the run to stop, and it did, after a checkpoint; ``step`` is the last step made."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass
class Run:
    """All the parts of a run, put together.

    Attributes:
        objective: Prepared by Accelerate, so perhaps wrapped in DDP.
        optimizers: Prepared too.
        lr_factor: Step -> factor on the peak learning rates.
        train_steps: (first step, end) -> this process's micro-batches, an update at a time.
        data_state: What this process's loader needs to go on after the last update that it gave.
        tokens_by_source: Step -> tokens of each source of a mixture that this process's loader gave; for the record.
        bad_rows: Rows that this process's loader passed over so far; None where they are not counted on the way.
        eval_batches: This process's evaluation batches, from the start at each call.
        identity: What a checkpoint and the run that goes on from it must share.
        arithmetic: What a token costs, and what the devices can do; for the record.
        state: Where the run is.
        writer: Of checkpoints; only on the main process.
        stop_requested: Whether this process was told to stop; asked after each update.
        on_saved: Told of each checkpoint that is on the disk, by the thread that wrote it.
    """

    config: TrainConfig
    accelerator: Accelerator
    objective: nn.Module
    optimizers: list[AcceleratedOptimizer]
    lr_factor: Callable[[int], float]
    plan: BatchPlan
    train_steps: Callable[[int, int], Iterator[list[MaskedBatch]]]
    data_state: Callable[[], dict[str, np.ndarray]]
    tokens_by_source: Callable[[int], dict[str, int]]
    bad_rows: Callable[[], int | None]
    eval_batches: Callable[[], Iterable[MaskedBatch]]
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    arithmetic: Arithmetic
    state: TrainState
    writer: CheckpointWriter | None
    stop_requested: Callable[[], bool]
    on_saved: Callable[[Path], None]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def bare_objective(self) -> MaskedLMObjective:
        """The objective without DDP around it."""
        return self.accelerator.unwrap_model(self.objective)

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face model inside."""
        return self.bare_objective.model


def train(run: Run) -> EvalMetrics:
    """Train from ``run.state`` to the end, save the final model, and return its evaluation.

    Raises:
        Stopped: A process was told to stop; all of them stop at the same step, with a checkpoint of it.
        NonFiniteError: An update was not finite, and the settings do not allow to leave it out; known when the next
            row is due, before anything is evaluated or saved.
    """
    config, state, is_main = run.config, run.state, run.accelerator.is_main_process
    progress = Progress(first_step=state.step, total_steps=run.plan.total_steps, shows=is_main)
    metrics_file = MetricsFile(run.output_dir / "metrics.jsonl", keep_through_step=state.step, writes=is_main)
    group = _group_on_cpu(run)
    window = TrainWindow(run.accelerator, config.learning_rate, run.arithmetic)
    report = LiveReport(run.output_dir, progress.line, writes=is_main)

    def log(row: dict[str, Any]) -> None:
        epoch = None if run.plan.steps_per_epoch is None else round(state.step / run.plan.steps_per_epoch, 4)
        row = {"step": state.step, "epoch": epoch, "seconds": round(metrics_file.seconds, 3), **row}
        metrics_file.write(row)
        track(run.accelerator, row)
        progress.show(row)

    evaluation: EvalMetrics | None = None
    if config.eval_on_start and state.step == 0:
        evaluation = _evaluate(run, log)
        if config.keeps_best:  # it may stay the best
            _save_checkpoint(run)
        window.reset()
    profiler = StepProfiler(config.profiled if is_main else None, run.output_dir, progress.line)
    run.objective.train()
    for batches in run.train_steps(state.step, run.plan.total_steps):
        profiler.before(state.step)
        window.add(_update(run, batches))
        profiler.after(state.step, last=state.step == run.plan.total_steps)
        progress.step()

        stops = _any_process(group, run.stop_requested()) and state.step < run.plan.total_steps
        evaluates = _is_due(run, run.plan.eval_steps)
        saves = stops or (_is_due(run, config.save_steps) if config.save_steps else evaluates)
        # Also before a checkpoint: the window is empty then, and a resumed run writes the same rows.
        if window.num_steps and (evaluates or saves or _is_due(run, config.logging_steps)):
            _count_left_out(run, window.take_left_out(), progress)
            if window.num_steps:
                log(window.read())
        if evaluates:
            evaluation = _evaluate(run, log)
            report.update()
        if saves or (evaluates and config.keeps_best and state.best_step == state.step):
            _save_checkpoint(run)
        if stops:
            _wait_for_checkpoints(run)
            progress.close()
            report.update(is_last=True)
            raise Stopped(state.step)
        if evaluates or saves:
            window.reset()
        if (patience := config.early_stopping_patience) and state.evaluations_without_improvement >= patience:
            progress.line(f"stopped early: {patience} evaluations without a lower loss")
            break
    progress.close()
    evaluation = _finish(run, evaluation)
    report.update(is_last=True)
    return evaluation


def _update(run: Run, batches: list[MaskedBatch]) -> StepMetrics:
    """Make the next step."""
    metrics = train_step(
        run.accelerator,
        run.objective,
        run.optimizers,
        batches,
        step=run.state.step,
        lr_factor=run.lr_factor(run.state.step),
        max_grad_norm=run.config.max_grad_norm,
        seed=run.config.seed,
    )
    run.state.step += 1
    return metrics


def _count_left_out(run: Run, updates: list[StepMetrics], progress: Progress) -> None:
    """Count the updates that were not finite; raise NonFiniteError where the settings do not allow one more."""
    config, state = run.config, run.state
    for update in updates:
        error = non_finite_error(update)
        if config.on_nonfinite == "stop" or state.num_skipped_steps == config.max_skipped_steps:
            raise error
        state.num_skipped_steps += 1
        progress.line(f"{error}; update left out, {state.num_skipped_steps} of at most {config.max_skipped_steps}")


def _group_on_cpu(run: Run) -> ProcessGroup | None:
    """Where the processes agree without a GPU, which would do all that was asked of it before; None if there is one."""
    if run.accelerator.num_processes == 1:
        return None
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=run.config.process_timeout))


def _any_process(group: ProcessGroup | None, flag: bool) -> bool:
    """Whether the flag is up on any process: the same answer on all."""
    if group is None:
        return flag
    num_up = torch.tensor(int(flag))
    distributed.all_reduce(num_up, group=group)
    return bool(num_up)


def _is_due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.total_steps


def _evaluate(run: Run, log: Callable[[dict[str, Any]], None]) -> EvalMetrics:
    """Evaluate, keep the record of the best, and log what came out."""
    state = run.state
    metrics = evaluate(run.accelerator, run.bare_objective, run.eval_batches())
    if state.step == 0:  # a checkpoint that the run goes on from knows of this very evaluation, which must count once
        state.best_step, state.best_loss, state.evaluations_without_improvement = None, None, 0
    # Nothing is less than NaN: as a best loss it would stay the best for ever.
    if math.isfinite(metrics.eval_loss) and (state.best_loss is None or not metrics.eval_loss >= state.best_loss):
        state.best_loss, state.best_step, state.evaluations_without_improvement = metrics.eval_loss, state.step, 0
    else:
        state.evaluations_without_improvement += 1
    log(asdict(metrics) | _tokens_by_source(run) | _bad_rows(run))
    if run.config.probe and run.accelerator.is_main_process:
        run.model.eval()
        with run.accelerator.autocast():
            log({"probes": fill_probes(run.model, run.tokenizer, run.config.probe)})
        run.model.train()
    return metrics


def _tokens_by_source(run: Run) -> dict[str, dict[str, int]]:
    """Tokens of each source of a mixture so far, over all processes; nothing where there is one source."""
    counts = run.tokens_by_source(run.state.step)
    if len(counts) < 2:
        return {}
    return {"tokens_by_source": dict(zip(counts, _over_processes(run, list(counts.values())), strict=True))}


def _bad_rows(run: Run) -> dict[str, int]:
    """Rows that were passed over so far, on all processes; nothing where that is not counted on the way."""
    count = run.bad_rows()
    return {} if count is None else {"bad_rows": _over_processes(run, [count])[0]}


def _over_processes(run: Run, counts: list[int]) -> list[int]:
    return run.accelerator.reduce(torch.tensor(counts, device=run.accelerator.device), "sum").tolist()


def _save_checkpoint(run: Run) -> None:
    state = run.state
    scaler = run.accelerator.scaler
    state.scaler = None if scaler is None else scaler.state_dict()
    data_state = run.data_state()
    if data_state and run.accelerator.num_processes > 1:
        data_state = {name: array for part in gather_object([data_state]) for name, array in part.items()}
    if run.writer is not None:
        best_step = state.best_step if run.config.keeps_best else None
        folder = checkpoint_folder(run.output_dir, state.step)

        def then() -> None:
            run.on_saved(folder)
            remove_old(run.output_dir, run.config.save_total_limit, best_step)

        run.writer.save(
            folder,
            run.model,
            run.tokenizer,
            run.optimizers,
            state=state,
            identity=run.identity,
            data_state=data_state,
            then=then,
        )


def _wait_for_checkpoints(run: Run) -> None:
    if run.writer is not None:
        run.writer.wait()
    run.accelerator.wait_for_everyone()


def _finish(run: Run, evaluation: EvalMetrics | None) -> EvalMetrics:
    """Save the final model: the last one, or the best where the settings ask for it; return its evaluation."""
    _wait_for_checkpoints(run)
    best_step = run.state.best_step
    if run.config.keeps_best and best_step is not None and best_step != run.state.step:
        best = load_model(str(checkpoint_folder(run.output_dir, best_step)))
        run.model.load_state_dict(best.state_dict())
        evaluation = None
    if run.accelerator.is_main_process:
        save_model(run.output_dir / "model", run.model, run.tokenizer)
    run.accelerator.wait_for_everyone()
    return evaluation or evaluate(run.accelerator, run.bare_objective, run.eval_batches())
