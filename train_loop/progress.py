"""What a person watches: one bar, a line per evaluation, and the probe sentences."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from train_loop.evaluate import EvalMetrics, perplexity


class Progress:
    """Shows on the main process, and is silent on the others."""

    def __init__(self, *, first_step: int, total_steps: int, shows: bool) -> None:
        self._shows = shows
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not shows,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def step(self) -> None:
        """Move the bar by one update."""
        self._bar.update()

    def train_row(self, row: dict[str, Any]) -> None:
        """Show loss, perplexity and rate beside the bar."""
        self._bar.set_postfix_str(
            f"loss {row['loss']:.3f}, perplexity {perplexity(row['loss']):.4g}, {_rate(row['tokens_per_second'])}",
            refresh=False,
        )

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shows:
            self._bar.write(text)

    def evaluation(self, step: int, epoch: float, metrics: EvalMetrics, *, is_best: bool) -> None:
        """Print an evaluation."""
        self.line(
            f"step {step:>6} | epoch {epoch:6.2f} | eval loss {metrics.eval_loss:.4f} | "
            f"perplexity {metrics.eval_perplexity:8.2f} | accuracy {metrics.eval_accuracy:6.1%}"
            + (" | best so far" if is_best else "")
        )

    def probes(self, probes: Sequence[dict[str, Any]]) -> None:
        """Print the top fills of each probe sentence."""
        for probe in probes:
            fills = "   ".join(f"{fill['token_str'].strip() or repr(fill['token_str'])} {fill['score']:.0%}" for fill in probe["fills"])
            self.line(f"    {probe['text']}   ->   {fills}")

    def close(self) -> None:
        """Leave the bar as it is and release the terminal."""
        self._bar.close()


def _rate(tokens_per_second: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if tokens_per_second >= size:
            return f"{tokens_per_second / size:.1f}{unit} tokens/s"
    return f"{tokens_per_second:.0f} tokens/s"
