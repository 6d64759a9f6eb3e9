"""A look inside a few updates: a trace that opens in Perfetto, and the costliest operations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from train_loop import run_files


@dataclass
class StepProfiler:
    """Profiles the updates ``steps`` of a run, the first and the last, on the main process; where None, nothing.

    The trace goes to ``profile/steps-FIRST-LAST.json.gz`` in the run's folder;
    https://ui.perfetto.dev opens it. ``say`` prints a line.
    """

    steps: tuple[int, int] | None
    output_dir: Path
    say: Callable[[str], None]
    _profile: profile | None = None

    def before(self, step: int) -> None:
        """Call before an update, with the number of updates made."""
        if self.steps is not None and step + 1 == self.steps[0]:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities)
            self._profile.start()

    def after(self, step: int, *, last: bool) -> None:
        """Call after an update, with the number of updates made; ``last`` if no other follows."""
        if self._profile is None or self.steps is None or not (step == self.steps[1] or last):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        path = self.output_dir / run_files.PROFILE / f"steps-{self.steps[0]}-{step}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        averages = self._profile.key_averages()
        total = sum(getattr(event, order) for event in averages) or 1
        self.say(f"profile  {path} opens in https://ui.perfetto.dev; the costliest operations of these updates:")
        for event in sorted(averages, key=lambda event: -getattr(event, order))[:10]:
            time = getattr(event, order)
            self.say(f"         {time / total:6.1%} {time / 1e3:9.1f} ms {event.count:6} x {event.key:.70}")
        self._profile = None
