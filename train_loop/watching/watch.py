"""Everything that observes a run: rows, bar, trackers, report, profiler."""

from collections.abc import Callable
from typing import Any

import torch

from train_loop import run_files
from train_loop.evaluate import sum_over_processes
from train_loop.objective import EvalMetrics
from train_loop.parallel import is_sharded
from train_loop.run import Run
from train_loop.speed.flops import Arithmetic
from train_loop.speed.profiler import StepProfiler
from train_loop.step import StepMetrics
from train_loop.watching.metrics import MetricsFile, TrainWindow, non_finite_error
from train_loop.watching.progress import Progress
from train_loop.watching.report import LiveReport
from train_loop.watching.trackers import track


class Watch:
    """Writes and shows the measurements of a run. All processes have one, and call the same methods."""

    def __init__(self, run: Run, arithmetic: Arithmetic, ask: Callable[[], dict[str, Any]]) -> None:
        """Open the bar and the rows, without those that the run will write again.

        ``ask`` gives what an evaluation asks of the model beside its loss, for the rows: ``probes``, and numbers.
        """
        self._run = run
        is_main = run.accelerator.is_main_process
        self.progress = Progress(first_step=run.state.step, total_steps=run.plan.total_steps, shows=is_main)
        self.line = self.progress.line  # prints a line, on the main process
        self._rows = MetricsFile(run.output_dir / run_files.METRICS, keep=self._is_kept, writes=is_main)
        self.report = LiveReport(run.output_dir, self.line, writes=is_main)
        self._profiler = StepProfiler(run.config.profiled if is_main else None, run.output_dir, self.line)
        peaks = {"learning_rate": run.config.learning_rate}
        if run.config.optimizer == "muon":  # and the other is of all weights but its matrices
            peaks["muon_learning_rate"] = run.config.muon_learning_rate
        self.window = TrainWindow(run.accelerator, run.bare_objective.terms, peaks, arithmetic)
        # What the weights as they are answer to the probe sentences and the suite.
        self.answers = ask if is_main or is_sharded(run.bare_objective) else dict

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of ``metrics.jsonl``, give it to the trackers, and show it."""
        step, steps_per_epoch = self._run.state.step, self._run.plan.steps_per_epoch
        epoch = None if steps_per_epoch is None else round(step / steps_per_epoch, 4)
        row = {"step": step, "epoch": epoch, "seconds": round(self._rows.seconds, 3), **row}
        self._rows.write(row)
        track(self._run.accelerator, row)
        self.progress.show(row)

    def before_update(self) -> None:
        """Call before each update."""
        self._profiler.before(self._run.state.step)

    def after_update(self, metrics: StepMetrics) -> None:
        """Add an update to the window, without waiting for the device."""
        step = self._run.state.step
        self.window.add(metrics)
        self._profiler.after(step, last=step == self._run.plan.total_steps)
        self.progress.step()

    def training_row(self) -> None:
        """Write the row of the updates since the last one, if there are any.

        Raises NonFiniteError if one of them was not finite, and the settings do not allow to skip it.
        """
        if self.window.num_steps:
            self._count_skipped(self.window.take_skipped())
        if self.window.num_steps:
            self.row(self.window.read())

    def evaluation_row(self, metrics: EvalMetrics, answers: dict[str, Any]) -> None:
        """Write the row of an evaluation, and that of its probes."""
        probes = answers.pop("probes", None)
        self.row(answers | metrics.row(self._run.eval_tokens_per_byte) | self._loader_counts())
        if probes is not None:
            self.row({"probes": probes})

    def _count_skipped(self, updates: list[StepMetrics]) -> None:
        config, state = self._run.config, self._run.state
        for update in updates:
            error = non_finite_error(update)
            if config.on_nonfinite == "stop" or state.num_skipped_steps == config.max_skipped_steps:
                raise error
            state.num_skipped_steps += 1
            self.line(f"{error}; update skipped, {state.num_skipped_steps} of at most {config.max_skipped_steps}")

    def _loader_counts(self) -> dict[str, Any]:
        """What the loaders of all processes count: tokens of each source of a mixture, and rows that were skipped."""
        loader = self._run.loader
        counts: dict[str, Any] = {}
        if len(names := loader.source_names) > 1:
            tokens = torch.from_numpy(loader.tokens_by_source(self._run.state.step))
            totals = map(int, sum_over_processes(self._run.accelerator, [tokens]))
            counts["tokens_by_source"] = dict(zip(names, totals, strict=True))
        if (bad_rows := loader.bad_rows) is not None:
            (total,) = sum_over_processes(self._run.accelerator, [torch.tensor([bad_rows])])
            counts["bad_rows"] = int(total)
        return counts

    def _is_kept(self, row: dict[str, Any]) -> bool:
        """Whether a row of an earlier start belongs to the state that the run resumes from."""
        state = self._run.state
        if row["step"] != state.step:
            return row["step"] < state.step
        return "loss" in row or state.evaluated_step == state.step
