"""Shares a run's model: a check of the Hub before training, a push at each save and at the end, the model's card."""

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.run.settings import fail
from train_loop.config import TrainConfig
from train_loop.sharing import hub
from train_loop.sharing.model_card import write_card

NOT_PUSHED = 3  # exit code if only the push failed
_WAITS_AT_START = (1.0, 2.0)


class Sharing:
    """Writes the card and pushes the model on the main process; without push_to_hub, it only writes the card."""

    def __init__(self, config: TrainConfig, *, is_main: bool) -> None:
        """Limit the time of all requests to the Hub, and check before training that a push can work.

        Raises:
            ValueError: It cannot work: a name is wrong, there is no token, or the Hub refuses or cannot be reached.
        """
        self._config = config
        self._is_main = is_main
        self._repository: hub.Repository | None = None
        self._background: hub.BackgroundPush | None = None
        hub.limit_waiting()
        if not (config.push_to_hub and is_main):
            return
        try:
            self._repository = hub.Repository(str(config.hub_model_id), config.hub_private_repo)
            hub.open_repository(self._repository, _WAITS_AT_START)
            if config.hub_license is not None:
                hub.check_licence(config.hub_license, _WAITS_AT_START)
        except (ValueError, hub.PublishError) as error:
            raise ValueError(f"push_to_hub with hub_model_id={config.hub_model_id!r}: {error}") from error
        if config.hub_strategy == "every_save":
            self._background = hub.BackgroundPush(Path(config.output_dir), self._repository)

    @property
    def on_saved(self) -> Callable[[Path], None]:
        """The function to call with the folder of each complete checkpoint."""
        return (lambda _: None) if self._background is None else self._background.push

    def finish(self, model: Path) -> None:
        """Write the final model's card, and push both.

        If the push fails, the process exits with one line and code 3; after a signal, the code is 143 or 130.
        """
        if self._is_main:
            try:
                write_card(model, self._config.hub_model_id)
            except OSError as error:
                print(f"card       not written: {error}", file=sys.stderr)
        if (repository := self._repository) is None:
            return
        again = f"{model} is complete; push it by: {hub.publish_command(model, repository)}"

        def break_off(number: int, _: FrameType | None) -> None:
            line = f"error: not pushed, {signal.Signals(number).name} came first; {again}\n"
            os.write(sys.stderr.fileno(), line.encode())  # the signal may have interrupted a print
            self._break_off(128 + number)

        def push() -> str:
            if self._background is not None:
                self._background.finish()
            return hub.push_model(model, repository, message="Model at the end of training")

        sys.stdout.flush()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, break_off)
        with ThreadPoolExecutor(1) as thread:  # this thread must be free to handle signals
            pushed = thread.submit(push)
            while wait([pushed], timeout=0.5).not_done:
                pass  # between two waits, Python handles a signal that another thread received
            try:
                where = pushed.result()
            except hub.PublishError as error:
                fail(f"not pushed: {error}; {again}", NOT_PUSHED)
        print(f"pushed     {where}")

    def leave(self, code: int) -> NoReturn:
        """Exit without waiting for a push in the background."""
        if self._background is None:
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        self._break_off(code)

    def _break_off(self, code: int) -> NoReturn:
        """Exit at once. A normal exit from Python would wait for the uploads of the Hub's client."""
        if self._background is not None:
            self._background.abandon()
        os._exit(code)
