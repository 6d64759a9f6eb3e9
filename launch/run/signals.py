"""Stopping on a signal: the first SIGTERM or SIGINT is remembered, and the loop saves and ends at its next step.

Schedulers give a job some seconds between SIGTERM and SIGKILL; people press
Ctrl-C. Both are to lose nothing.
"""

import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StopSignals:
    """The first SIGTERM or SIGINT that this process got since `listen`.

    Attributes:
        number: Of the signal, or None. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def listen(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


def stop_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is gone (Linux).

    With one process, SIGTERM kills `accelerate launch` and leaves the trainer
    running, with nobody to stop it.
    """
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it went before the kernel knew
            os.kill(os.getpid(), signal.SIGTERM)
