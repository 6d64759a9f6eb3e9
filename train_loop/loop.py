"""When to step, log, evaluate, save and stop. Other modules do each of these."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from data.batch import MaskedBatch
from train_loop.evaluate import evaluate
from train_loop.objective import EvalMetrics
from train_loop.parallel import even_out, full_state, is_sharded, load_full_state
from train_loop.run import Run, Stopped
from train_loop.run_checkpoints import load_whole
from train_loop.run_files import checkpoint_folder
from train_loop.step import StepMetrics, train_step
from train_loop.watching.watch import Watch


def train(run: Run, watch: Watch) -> EvalMetrics:
    """Train from ``run.state`` to the end, save the final model, and return its evaluation.

    Raises Stopped if a process was told to stop: all processes stop at the same step, after a checkpoint of it. Raises
    NonFiniteError if an update was not finite, and the settings do not allow to skip it. This is noticed at the next
    training row, before anything is evaluated or saved.
    """
    try:
        evaluation = _make_updates(run, watch)
    except Stopped:
        _save_checkpoint(run)
        _wait_for_checkpoints(run)
        watch.report.update(is_last=True)
        raise
    finally:
        watch.progress.close()
    evaluation = _finish(run, watch, evaluation)
    watch.report.update(is_last=True)
    return evaluation


def _make_updates(run: Run, watch: Watch) -> EvalMetrics | None:
    """Make all updates; return the last evaluation."""
    config, state, end = run.config, run.state, run.plan.total_steps
    evaluation: EvalMetrics | None = None
    if _owes_evaluation(run):
        evaluation = _evaluate(run, watch)
        if state.step or config.keeps_best:  # it may stay the best
            _save_checkpoint(run)
    if _is_out_of_patience(run, watch):  # the run had ended, and was resumed
        return evaluation
    watch.window.reset()
    run.objective.train()
    for batches in run.loader.steps(state.step, end):
        watch.before_update()
        metrics = update(run, batches)
        watch.after_update(metrics)

        stops = run.processes.stop() and state.step < end
        evaluates = _is_due(run, run.plan.eval_steps)
        saves = _is_due(run, config.save_steps) if config.save_steps else evaluates
        # A row before each checkpoint too, so that a resumed run writes the same rows.
        if evaluates or saves or stops or _is_due(run, config.logging_steps):
            watch.training_row()
        if stops:
            raise Stopped(state.step)
        if evaluates:
            evaluation = _evaluate(run, watch)
            watch.report.update()
        if saves or (evaluates and config.keeps_best and state.best_step == state.step):
            _save_checkpoint(run)
        if evaluates or saves:
            watch.window.reset()
        if _is_out_of_patience(run, watch):
            break
    return evaluation


def update(run: Run, batches: list[MaskedBatch]) -> StepMetrics:
    """Make the next update of a run, with this process's micro-batches."""
    metrics = train_step(
        run.accelerator,
        run.objective,
        run.optimizers,
        even_out(batches, run.plan.micro_batches_per_step, run.bare_objective),
        step=run.state.step,
        lr_factor=run.lr_factor(run.state.step),
        max_grad_norm=run.config.max_grad_norm,
        seed=run.config.seed,
    )
    run.state.step += 1
    return metrics


def _is_due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.total_steps


def _owes_evaluation(run: Run) -> bool:
    """Whether to evaluate before the first update: by the settings, or because the run was stopped within it."""
    if run.state.evaluated_step == run.state.step:
        return False
    return _is_due(run, run.plan.eval_steps) if run.state.step else run.config.eval_on_start


def _is_out_of_patience(run: Run, watch: Watch) -> bool:
    patience = run.config.early_stopping_patience
    if patience is None or run.state.evaluations_without_improvement < patience:
        return False
    watch.line(f"stopped early: {patience} evaluations without a lower loss")
    return True


def _evaluate(run: Run, watch: Watch) -> EvalMetrics:
    """Evaluate, remember the best loss, and write the row. Raises Stopped."""
    state = run.state
    with _evaluation_weights(run):
        metrics = evaluate(run.accelerator, run.bare_objective, _eval_batches(run))
        answers = watch.answers()
    state.evaluated_step = state.step
    # Nothing is less than NaN: as a best loss it would stay the best for ever.
    if math.isfinite(metrics.eval_loss) and (state.best_loss is None or not metrics.eval_loss >= state.best_loss):
        state.best_loss, state.best_step, state.evaluations_without_improvement = metrics.eval_loss, state.step, 0
    else:
        state.evaluations_without_improvement += 1
    watch.evaluation_row(metrics, answers)
    return metrics


@contextmanager
def _evaluation_weights(run: Run) -> Iterator[None]:
    """Switch to the weights for evaluation: an optimizer that averages weights, like schedule-free's, has its own."""
    for optimizer in run.optimizers:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer in run.optimizers:
            optimizer.train()


def _eval_batches(run: Run) -> Iterator[MaskedBatch]:
    """Yield this process's evaluation batches; before each of them all processes vote on stopping. Raises Stopped."""
    batches = iter(run.eval_batches())
    batch = next(batches, None)
    while run.processes.any(batch is not None):
        if run.processes.stop():
            raise Stopped(run.state.step)
        yield from even_out([] if batch is None else [batch], 1, run.bare_objective)
        batch = next(batches, None)


def _save_checkpoint(run: Run) -> None:
    data_state = {name: array for part in run.processes.gather(run.loader.state()) for name, array in part.items()}
    _wait_for_checkpoints(run)
    _write_checkpoint(run, data_state)


def save_alone(run: Run) -> None:
    """Save on the main process after others were lost, if it has all that a checkpoint holds: no shards, no streams.

    An update whose gradients could not be averaged has changed nothing yet, so this is the last whole one.
    """
    if run.processes.is_main and not is_sharded(run.bare_objective) and not run.loader.state():
        run.checkpoints.wait()
        _write_checkpoint(run, {})
        run.checkpoints.wait()


def _write_checkpoint(run: Run, data_state: dict[str, np.ndarray]) -> None:
    scaler = run.accelerator.scaler
    run.state.scaler = None if scaler is None else scaler.state_dict()
    is_main = run.processes.is_main
    weights, tensors = full_state(run.bare_objective, run.optimizers, is_wanted=is_main)
    if is_main:
        run.checkpoints.save(run.bare_objective, weights, tensors, state=run.state, data_state=data_state)


def _wait_for_checkpoints(run: Run) -> None:
    if run.processes.is_main:
        run.checkpoints.wait()
    run.processes.wait()


def _finish(run: Run, watch: Watch, evaluation: EvalMetrics | None) -> EvalMetrics:
    """Save the final model, which is the last or the best one, and return its evaluation. Raises Stopped."""
    _wait_for_checkpoints(run)
    objective, best_step = run.bare_objective, run.state.best_step
    if run.config.keeps_best and best_step is not None and best_step != run.state.step:
        try:
            folder = checkpoint_folder(run.output_dir, best_step)
            best = run.processes.tensors_from_main(lambda: load_whole(folder, objective))
            load_full_state(objective, run.optimizers, best)
            evaluation = None
        except ValueError as error:
            step = run.state.step
            watch.line(f"the final model is the last one, of step {step}, not the best, of step {best_step}: {error}")
            watch.row({"model_step": step})
    with _evaluation_weights(run):
        weights, _ = full_state(objective, (), is_wanted=run.processes.is_main)
        if run.processes.is_main:
            run.checkpoints.save_final(objective, weights)
        run.processes.wait()
        return evaluation or evaluate(run.accelerator, objective, _eval_batches(run))
