"""Shares a run's model: a check of the Hub before training, a push at each save and at the end, the model's card."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

from launch.run.signals import StopSignals
from train_loop.config import TrainConfig
from train_loop.sharing import hub
from train_loop.sharing.model_card import write_card

NOT_PUSHED = 3  # exit code if only the push failed
_WAITS_AT_START = (1.0, 2.0)


class NotPushedError(Exception):
    """The model is complete, and not on the Hub. ``code`` is the exit code: NOT_PUSHED, or 128 and a signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Sharing:
    """Writes the card and pushes the model on the main process; without push_to_hub, it only writes the card."""

    def __init__(self, config: TrainConfig, *, is_main: bool) -> None:
        """Limit the time of all requests to the Hub; check before training that a push can work, else ValueError."""
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

    def finish(self, model: Path, signals: StopSignals) -> None:
        """Write the final model's card, and push both; NotPushedError if that fails or a signal comes first."""
        if self._is_main:
            try:
                write_card(model, self._config.hub_model_id)
            except OSError as error:
                print(f"card       not written: {error}", file=sys.stderr)
        if (repository := self._repository) is None:
            return
        again = f"{model} is complete; push it by: {publish_command(model, repository)}"

        def push() -> str:
            if self._background is not None:
                self._background.finish()
            return hub.push_model(model, repository, message="Model at the end of training")

        thread = ThreadPoolExecutor(1)  # this thread must be free to handle signals
        pushed = thread.submit(push)
        thread.shutdown(wait=False)
        while wait([pushed], timeout=0.5).not_done:
            if signals.number is not None:
                name = signal.Signals(signals.number).name
                raise NotPushedError(f"not pushed, {name} came first; {again}", 128 + signals.number)
        try:
            print(f"pushed     {pushed.result()}")
        except hub.PublishError as error:
            raise NotPushedError(f"not pushed: {error}; {again}", NOT_PUSHED) from error

    def leave(self, code: int) -> NoReturn:
        """Exit without waiting for a push."""
        if self._repository is None:
            sys.exit(code)
        if self._background is not None:
            self._background.abandon()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a normal exit from Python would wait for the uploads of the Hub's client


def publish_command(model: Path, repository: hub.Repository) -> str:
    """The command that pushes a model again."""
    words = ["mlm", "publish", "--model", str(model), "--repo_id", repository.repo_id]
    words += ["--private"] * bool(repository.private) + ["--create_pr"] * repository.create_pr
    if repository.revision is not None:
        words += ["--revision", repository.revision]
    return shlex.join(words)
