"""Stops a run on a signal: the first SIGTERM or SIGINT is remembered, and the loop saves and ends after its update.

Schedulers leave a job some seconds between SIGTERM and SIGKILL, and people press Ctrl-C. Neither may lose work.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StopSignals:
    """The first SIGTERM or SIGINT that this process received while they are `remembered`: its number, or None.

    A second Ctrl-C ends the process at once.
    """

    number: int | None = None

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Handle both signals. Python allows it in the main thread only."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


def stop_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process when its launcher ends (Linux).

    With one process, SIGTERM kills `accelerate launch` only, and nobody would stop the trainer.
    """
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it ended before the kernel was told
            os.kill(os.getpid(), signal.SIGTERM)
