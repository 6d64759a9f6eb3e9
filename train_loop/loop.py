"""Cadence: when to step, log, evaluate, save and stop. What each of them means is elsewhere."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.batch import MaskedBatch
from train_loop.checkpoint import TrainState, save_model
from train_loop.config import BatchPlan, TrainConfig
from train_loop.evaluate import EvalMetrics, evaluate
from train_loop.inference.probes import fill_probes
from train_loop.objective import MaskedLMObjective
from train_loop.processes import Processes
from train_loop.run_checkpoints import RunCheckpoints
from train_loop.speed.flops import Arithmetic
from train_loop.speed.profiler import StepProfiler
from train_loop.step import StepMetrics, non_finite_error, train_step
from train_loop.watching.metrics import MetricsFile, TrainWindow
from train_loop.watching.progress import Progress
from train_loop.watching.report import LiveReport
from train_loop.watching.trackers import track


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
        arithmetic: What a token costs, and what the devices can do; for the record.
        state: Where the run is.
        checkpoints: Used on the main process only.
        stop_requested: Whether this process was told to stop; asked after each update and each evaluation batch.
    """

    config: TrainConfig
    accelerator: Accelerator
    processes: Processes
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
    arithmetic: Arithmetic
    state: TrainState
    checkpoints: RunCheckpoints
    stop_requested: Callable[[], bool]

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
    state, is_main = run.state, run.accelerator.is_main_process
    progress = Progress(first_step=state.step, total_steps=run.plan.total_steps, shows=is_main)
    metrics_file = MetricsFile(run.output_dir / "metrics.jsonl", keep=partial(_is_of_state, state), writes=is_main)
    report = LiveReport(run.output_dir, progress.line, writes=is_main)

    def log(row: dict[str, Any]) -> None:
        epoch = None if run.plan.steps_per_epoch is None else round(state.step / run.plan.steps_per_epoch, 4)
        row = {"step": state.step, "epoch": epoch, "seconds": round(metrics_file.seconds, 3), **row}
        metrics_file.write(row)
        track(run.accelerator, row)
        progress.show(row)

    try:
        evaluation = _train(run, log, progress, report)
    except Stopped:
        _save_checkpoint(run)
        _wait_for_checkpoints(run)
        report.update(is_last=True)
        raise
    finally:
        progress.close()
    evaluation = _finish(run, evaluation, log, progress)
    report.update(is_last=True)
    return evaluation


def _train(
    run: Run, log: Callable[[dict[str, Any]], None], progress: Progress, report: LiveReport
) -> EvalMetrics | None:
    """Make all updates; return the last evaluation."""
    config, state = run.config, run.state
    evaluation: EvalMetrics | None = None
    # At the start where the settings ask for it, or if the run was stopped within the evaluation of this step.
    if state.evaluated_step != state.step and (
        _is_due(run, run.plan.eval_steps) if state.step else config.eval_on_start
    ):
        evaluation = _evaluate(run, log)
        if state.step or config.keeps_best:  # it may stay the best
            _save_checkpoint(run)
    if _is_out_of_patience(run, progress):  # gone on with, after it had ended
        return evaluation
    window = TrainWindow(run.accelerator, config.learning_rate, run.arithmetic)
    profiler = StepProfiler(config.profiled if run.accelerator.is_main_process else None, run.output_dir, progress.line)
    run.objective.train()
    for batches in run.train_steps(state.step, run.plan.total_steps):
        profiler.before(state.step)
        window.add(_update(run, batches))
        profiler.after(state.step, last=state.step == run.plan.total_steps)
        progress.step()

        (stops,) = run.processes.any(run.stop_requested() and state.step < run.plan.total_steps)
        evaluates = _is_due(run, run.plan.eval_steps)
        saves = _is_due(run, config.save_steps) if config.save_steps else evaluates
        # Also before a checkpoint: the window is empty then, and a resumed run writes the same rows.
        if window.num_steps and (evaluates or saves or stops or _is_due(run, config.logging_steps)):
            _count_left_out(run, window.take_left_out(), progress)
            if window.num_steps:
                log(window.read())
        if stops:
            raise Stopped(state.step)
        if evaluates:
            evaluation = _evaluate(run, log)
            report.update()
        if saves or (evaluates and config.keeps_best and state.best_step == state.step):
            _save_checkpoint(run)
        if evaluates or saves:
            window.reset()
        if _is_out_of_patience(run, progress):
            break
    return evaluation


def _is_out_of_patience(run: Run, progress: Progress) -> bool:
    patience = run.config.early_stopping_patience
    if patience is None or run.state.evaluations_without_improvement < patience:
        return False
    progress.line(f"stopped early: {patience} evaluations without a lower loss")
    return True


def _is_of_state(state: TrainState, row: dict[str, Any]) -> bool:
    """Whether a row that an earlier start wrote is of what the run goes on from, and will not be written again."""
    if row["step"] != state.step:
        return row["step"] < state.step
    return "loss" in row or state.evaluated_step == state.step


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


def _is_due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.total_steps


def _evaluate(run: Run, log: Callable[[dict[str, Any]], None]) -> EvalMetrics:
    """Evaluate, keep the record of the best, and log what came out.

    Raises:
        Stopped: See `_eval_batches`.
    """
    state = run.state
    metrics = evaluate(run.accelerator, run.bare_objective, _eval_batches(run))
    state.evaluated_step = state.step
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


def _eval_batches(run: Run) -> Iterator[MaskedBatch]:
    """Yield this process's evaluation batches.

    All processes vote before each batch, as often as the one with most batches.

    Raises:
        Stopped: A process was told to stop.
    """
    batches = iter(run.eval_batches())
    batch = next(batches, None)
    while True:
        stops, goes_on = run.processes.any(run.stop_requested(), batch is not None)
        if stops:
            raise Stopped(run.state.step)
        if not goes_on:
            return
        if batch is not None:
            yield batch
        batch = next(batches, None)


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
    data_state = {name: array for part in run.processes.gather(run.data_state()) for name, array in part.items()}
    if run.accelerator.is_main_process:
        run.checkpoints.save(run.model, run.tokenizer, run.optimizers, state=state, data_state=data_state)


def _wait_for_checkpoints(run: Run) -> None:
    if run.accelerator.is_main_process:
        run.checkpoints.wait()
    run.processes.wait()


def _finish(
    run: Run, evaluation: EvalMetrics | None, log: Callable[[dict[str, Any]], None], progress: Progress
) -> EvalMetrics:
    """Save the final model: the last one, or the best where the settings ask for it; return its evaluation.

    Raises:
        Stopped: A process was told to stop before the model that is saved was evaluated.
    """
    _wait_for_checkpoints(run)
    step, best_step = run.state.step, run.state.best_step
    if run.config.keeps_best and best_step is not None and best_step != step:
        problem = run.processes.from_main(lambda: run.checkpoints.load_best(best_step, run.model))
        if problem is None:
            run.processes.weights_from_main(run.model)
            evaluation = None
        else:
            progress.line(
                f"the final model is the last one, of step {step}, not the best, of step {best_step}: {problem}"
            )
            log({"model_step": step})
    if run.accelerator.is_main_process:
        save_model(run.output_dir / "model", run.model, run.tokenizer)
    run.processes.wait()
    return evaluation or evaluate(run.accelerator, run.bare_objective, _eval_batches(run))
