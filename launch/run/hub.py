"""What a run does for the Hub: a check before training, a push at each save and at the end, and the model's card."""

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
from train_loop.sharing.hub import (
    BackgroundPush,
    PublishError,
    Repository,
    check_licence,
    limit_waiting,
    open_repository,
    publish_command,
    push_model,
)
from train_loop.sharing.model_card import write_card

NOT_PUSHED = 3  # exit code where all but the push was done
_WAITS_AT_START = (1.0, 2.0)


class Sharing:
    """The main process's way to the Hub; without push_to_hub it writes the card, and on other processes nothing."""

    def __init__(self, config: TrainConfig, *, is_main: bool) -> None:
        """Make sure, before time is spent, that pushing can work, and that no process waits for the Hub for ever.

        Raises:
            ValueError: It cannot: a name is wrong, there is no token, or the Hub refuses or is out of reach.
        """
        self._config = config
        self._is_main = is_main
        self._repository: Repository | None = None
        self._background: BackgroundPush | None = None
        limit_waiting()
        if not (config.push_to_hub and is_main):
            return
        try:
            self._repository = Repository(str(config.hub_model_id), config.hub_private_repo)
            open_repository(self._repository, _WAITS_AT_START)
            if config.hub_license is not None:
                check_licence(config.hub_license, _WAITS_AT_START)
        except (ValueError, PublishError) as error:
            raise ValueError(f"push_to_hub with hub_model_id={config.hub_model_id!r}: {error}") from error
        if config.hub_strategy == "every_save":
            self._background = BackgroundPush(Path(config.output_dir), self._repository)

    @property
    def on_saved(self) -> Callable[[Path], None]:
        """What a checkpoint's writer calls."""
        return (lambda _: None) if self._background is None else self._background.push

    def finish(self, model: Path) -> None:
        """Write the final model's card, and push both.

        Exits with one line where that does not come to its end: 3 if the Hub does not take them, 143 or 130 for a
        signal.
        """
        if self._is_main:
            try:
                write_card(model, self._config.hub_model_id)
            except OSError as error:
                print(f"card       not written: {error}", file=sys.stderr)
        if self._repository is None:
            return
        repository = self._repository
        again = f"{model} is complete; push it by: {publish_command(model, repository)}"

        def break_off(number: int, _: FrameType | None) -> None:
            line = f"error: not pushed, {signal.Signals(number).name} came first; {again}\n"
            os.write(sys.stderr.fileno(), line.encode())  # print may be under way
            self._break_off(128 + number)

        def push() -> str:
            if self._background is not None:
                self._background.finish()
            return push_model(model, repository, message="Model at the end of training")

        sys.stdout.flush()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, break_off)
        with ThreadPoolExecutor(1) as thread:  # not this one, which is where signals are seen
            pushed = thread.submit(push)
            while wait([pushed], timeout=0.5).not_done:
                pass  # between two waits also those that another thread got
            try:
                where = pushed.result()
            except PublishError as error:
                fail(f"not pushed: {error}; {again}", NOT_PUSHED)
        print(f"pushed     {where}")

    def leave(self, code: int) -> NoReturn:
        """Exit, and not wait for a push that is under way."""
        if self._background is None:
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        self._break_off(code)

    def _break_off(self, code: int) -> NoReturn:
        """Exit at once: on the way out of Python the client would finish its uploads first."""
        if self._background is not None:
            self._background.abandon()
        os._exit(code)
