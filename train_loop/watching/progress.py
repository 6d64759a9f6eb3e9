"""Shows a run's progress to a person: a bar, a line per evaluation, and the probe sentences."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from train_loop.objectives.masked_lm import perplexity
from train_loop.watching.run_record import shown_fills, shown_perplexity

_SECONDS_BETWEEN_LINES = 10.0  # where no terminal can show a bar


class Progress:
    """Shows progress on the main process; it is silent on the others.

    In a terminal or a notebook, the last training row stands beside a bar. In a log file, training
    rows are lines, at most one every ten seconds.
    """

    def __init__(self, *, first_step: int, total_steps: int, shows: bool) -> None:
        self._shows = shows
        self._total_steps = total_steps
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not (shows and (sys.stderr.isatty() or "ipykernel" in sys.modules)),  # in a notebook too
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def step(self) -> None:
        """Move the bar by one update."""
        self._bar.update()

    def show(self, row: dict[str, Any]) -> None:
        """Show a row of metrics.jsonl: training, an evaluation, or the probe sentences."""
        if "loss" in row:
            self._training(row)
        elif "eval_loss" in row:
            epoch = "" if row["epoch"] is None else f"epoch {row['epoch']:6.2f} | "
            self.line(
                f"step {row['step']:>6} | {epoch}eval loss {row['eval_loss']:.4f} | "
                f"perplexity {shown_perplexity(row['eval_perplexity']):>8} | accuracy {row['eval_accuracy']:6.1%}"
            )
            if shares := row.get("tokens_by_source"):
                total = sum(shares.values()) or 1
                self.line(
                    "       tokens  " + "  ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in shares.items())
                )
        else:
            for probe in row.get("probes", ()):
                self.line(f"       {probe['text']:<55} {shown_fills(probe, '  ')}")

    def _training(self, row: dict[str, Any]) -> None:
        text = (
            f"loss {row['loss']:.3f}, perplexity {perplexity(row['loss']):.4g}, "
            f"{tqdm.format_sizeof(row['tokens_per_second'])} tokens/s, MFU {row['flop_utilization']:.0%}"
        )
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.line(f"step {row['step']:>6} of {self._total_steps} | {text}")

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._shows:
            self._bar.write(text)

    def close(self) -> None:
        """Release the terminal; the bar stays visible."""
        self._bar.close()
