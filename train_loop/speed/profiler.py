"""A look inside a few updates: a trace that opens in Perfetto, and the costliest operations."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from train_loop import run_files


class StepProfiler:
    """Profiles the updates ``first`` to ``last`` of a run, on the main process.

    The trace goes to ``profile/steps-FIRST-LAST.json.gz`` in the run's folder;
    https://ui.perfetto.dev opens it.
    """

    def __init__(self, steps: tuple[int, int] | None, output_dir: Path, say: Callable[[str], None]) -> None:
        """Take the updates, counted from 1, or None to profile nothing; ``say`` prints a line."""
        self._steps = steps
        self._path = output_dir / run_files.PROFILE
        self._say = say
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Call before an update, with the number of updates made."""
        if self._steps is not None and step + 1 == self._steps[0]:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities)
            self._profile.start()

    def after(self, step: int, *, last: bool) -> None:
        """Call after an update, with the number of updates made; ``last`` if no other follows."""
        if self._profile is None or self._steps is None or not (step == self._steps[1] or last):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        self._path.mkdir(parents=True, exist_ok=True)
        path = self._path / f"steps-{self._steps[0]}-{step}.json.gz"
        self._profile.export_chrome_trace(str(path))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        averages = self._profile.key_averages()
        total = sum(getattr(event, order) for event in averages) or 1
        self._say(f"profile  {path} opens in https://ui.perfetto.dev; the costliest operations of these updates:")
        for event in sorted(averages, key=lambda event: -getattr(event, order))[:10]:
            time = getattr(event, order)
            self._say(f"         {time / total:6.1%} {time / 1e3:9.1f} ms {event.count:6} x {event.key:.70}")
        self._profile = None
