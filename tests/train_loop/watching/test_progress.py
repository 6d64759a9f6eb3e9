"""What a person sees of a run in a terminal of 80 columns, and in a log file."""

import io
import os
import pty
import re
import termios
from typing import Any

import pytest

from train_loop.watching.columns import width
from train_loop.watching.progress import Progress

PROBES = ["The default <mask> is None.", "Return True if the object is an <mask> of the class, and False otherwise."]
TRAINING = {"step": 4, "loss": 4.2, "tokens_per_second": 12345.6, "flop_utilization": 0.34}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    """Standard output and error as one terminal of 80 columns."""
    screen = _Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    return screen


def _evaluation(step: int, loss: float, epoch: float = 3.73) -> dict[str, Any]:
    row = {"step": step, "epoch": epoch, "eval_loss": loss, "eval_perplexity": 2.718281828**loss}
    return {**row, "eval_accuracy": 0.435}


def _probes(step: int, score: float) -> dict[str, Any]:
    fills = [
        {"token_str": f" {word}", "score": score / n} for n, word in enumerate(("characters", "string", "name"), 1)
    ]
    return {"step": step, "probes": [{"text": text, "fills": fills} for text in PROBES]}


def _progress() -> Progress:
    return Progress(first_step=0, total_steps=1100, shows=True)


def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _in_a_terminal(monkeypatch)
    progress = _progress()
    for row in (_evaluation(0, 6.4, 0.0), _evaluation(1100, 2.885), _evaluation(100_000, 20.0, 103.25)):
        progress.show(row)
    progress.show({**_evaluation(220, 5.0), "tokens_by_source": {f"texts/source-{i}.txt": 10**6 + i for i in range(5)}})
    progress.show(_probes(1100, 0.65))
    progress.line("the update of step 12 was not finite; " * 4)
    progress.close()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[A-Z0-9]*", "", terminal.getvalue()))
    assert max(map(width, lines)) <= 80
    assert sum(line.startswith("step ") for line in lines) == 4
    assert any(re.search(r"an <mask> of .*  characters 65%", line) for line in lines)


def test_the_bar_stays_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _in_a_terminal(monkeypatch)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    monkeypatch.setattr(terminal, "fileno", lambda: slave)  # tqdm asks it for the columns
    progress = _progress()
    progress.show(TRAINING)
    progress._bar.refresh()
    progress.close()
    os.close(slave)
    os.close(master)
    *_, last = terminal.getvalue().rstrip().split("\r")
    assert "loss 4.200, 12.3k tokens/s" in last
    assert len(last.split("|")[1]) >= 15
    assert width(last) <= 80


@pytest.mark.parametrize(("more", "expected"), [({"mfu": 0.4}, "MFU 40%"), ({}, "34% of the matrix rate")])
def test_a_share_of_the_measured_rate_is_not_called_mfu(
    more: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train_loop.watching.progress._SECONDS_BETWEEN_LINES", -1)
    _progress().show(TRAINING | more)
    out = capsys.readouterr().out
    assert out == f"step      4 of 1100 | loss 4.200, perplexity 66.69, 12.3k tokens/s, {expected}\n"


def test_probes_appear_when_they_say_something(capsys: pytest.CaptureFixture[str]) -> None:
    """From the first evaluation with a sure fill on, and at the last step whatever they say; a log has them whole."""
    progress = _progress()
    shown = []
    for step, score in ((0, 0.0004), (220, 0.06), (440, 0.11), (660, 0.05)):
        progress.show(_probes(step, score))
        shown.append(capsys.readouterr().out)
    assert shown[:2] == ["", ""]
    assert shown[2].splitlines()[1] == f"  {PROBES[1]}  characters 11%  string 6%  name 4%"
    assert shown[3].count("characters 5%") == 2
    progress = _progress()
    progress.show(_probes(1100, 0.01))
    assert capsys.readouterr().out.count("<mask>") == 2
