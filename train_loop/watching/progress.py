"""Shows a run's progress to a person: a bar, a line per evaluation, and the probe sentences."""

import itertools
import sys
import time
from typing import Any

from tqdm.auto import tqdm

from train_loop.objectives.masked_lm import perplexity
from train_loop.watching.columns import excerpt, terminal_columns, width, wrap
from train_loop.watching.run_record import Row, shown, shown_fills

_SECONDS_BETWEEN_LINES = 10.0  # where no terminal can show a bar
_SAYS_SOMETHING = 0.1  # the probability of a probe's best fill; before, all probes have the most frequent tokens
_COLUMNS_OF_FILLS = 36
_NOT_IN_LINE = ("eval_bits_per_byte", "eval_num_masked_tokens")
_WIDE = 120  # columns, in which a bar has room for all numbers


class Progress:
    """Shows progress on the main process, by a bar in a terminal or a notebook; it is silent on the others."""

    def __init__(self, *, first_step: int, total_steps: int, shows: bool) -> None:
        self._shows = shows
        self._total_steps = total_steps
        self._last_line = time.monotonic()
        self._shows_probes = False
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
            epoch = "" if row["epoch"] is None else f"epoch {row['epoch']:.2f} | "
            names = [name for name in itertools.dropwhile("eval_loss".__ne__, row) if name.startswith("eval_")]
            values = {name: shown(row, name).replace(",", "") for name in names if name not in _NOT_IN_LINE}
            texts = [f"{name[5:].replace('_', ' ')} {values[name]:>{6 * ('perp' in name)}}" for name in values]
            self.line(f"step {row['step']:>6} | {epoch}eval {' | '.join(texts)}")
            if shares := row.get("tokens_by_source"):
                total = sum(shares.values()) or 1
                text = "  ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in shares.items())
                self.line(text, "       tokens  ")
        elif probes := row.get("probes"):
            is_said = any(fill["score"] >= _SAYS_SOMETHING for probe in probes for fill in probe["fills"])
            self._shows_probes |= is_said or row["step"] == self._total_steps
            if self._shows_probes:
                self._probes(probes)

    def _probes(self, probes: list[Row]) -> None:
        columns = terminal_columns()
        longest = max(width(probe["text"]) for probe in probes)
        room = longest if columns is None else min(longest, max(columns - _COLUMNS_OF_FILLS, 20))
        for probe in probes:
            text = excerpt(probe["text"], room, probe["text"].index("<mask>"))
            fills = shown_fills(probe, "  ")
            self.line(excerpt(f"  {text}{' ' * (room - width(text))}  {fills}", columns))

    def _training(self, row: dict[str, Any]) -> None:
        loss, speed = f"loss {row['loss']:.3f}", f"{tqdm.format_sizeof(row['tokens_per_second'])} tokens/s"
        share = f"MFU {row['mfu']:.0%}" if "mfu" in row else f"{row['flop_utilization']:.0%} of the matrix rate"
        is_sum = any(name.startswith("loss_") for name in row)  # of several terms
        numbers = [loss, *([] if is_sum else [f"perplexity {perplexity(row['loss']):.4g}"]), speed, share]
        if not self._bar.disable:
            is_wide = (self._bar.ncols or _WIDE) >= _WIDE
            self._bar.set_postfix_str(", ".join(numbers) if is_wide else f"{loss}, {speed}", refresh=False)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.line(f"step {row['step']:>6} of {self._total_steps} | {', '.join(numbers)}")

    def line(self, text: str, label: str = "") -> None:
        """Print a line, above the bar if there is one; what does not fit is wrapped behind the label."""
        if self._shows:
            self._bar.write(wrap(text, terminal_columns(), label))

    def close(self) -> None:
        """Release the terminal; the bar stays visible."""
        self._bar.close()
