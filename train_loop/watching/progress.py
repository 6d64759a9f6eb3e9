"""What a person watches: one bar, a line per evaluation, and the probe sentences."""

import sys
import time
from typing import Any

from tqdm import tqdm

from train_loop.evaluate import perplexity
from train_loop.watching.run_record import shown_perplexity

_SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to draw a bar in


class Progress:
    """Shows on the main process, and is silent on the others.

    In a terminal the training rows stand beside a bar; in a log file they are
    lines, one every ten seconds at most.
    """

    def __init__(self, *, first_step: int, total_steps: int, shows: bool) -> None:
        self._shows = shows
        self._total_steps = total_steps
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not (shows and sys.stderr.isatty()),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def step(self) -> None:
        """Move the bar by one update."""
        self._bar.update()

    def show(self, row: dict[str, Any]) -> None:
        """Show a row of metrics.jsonl: of training, of an evaluation, or of the probe sentences."""
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
                fills = "  ".join(f"{fill['token_str'].strip()} {fill['score']:.0%}" for fill in probe["fills"])
                self.line(f"       {probe['text']:<55} {fills}")

    def _training(self, row: dict[str, Any]) -> None:
        text = (
            f"loss {row['loss']:.3f}, perplexity {perplexity(row['loss']):.4g}, {_rate(row['tokens_per_second'])}, "
            f"MFU {row['flop_utilization']:.0%}"
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
        """Leave the bar as it is and release the terminal."""
        self._bar.close()


def _rate(tokens_per_second: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if tokens_per_second >= size:
            return f"{tokens_per_second / size:.1f}{unit} tokens/s"
    return f"{tokens_per_second:.0f} tokens/s"
