"""The folder of a run: whether it may be used, which process uses it, and how it begins."""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from launch.run.settings import Settings
from train_loop import run_files
from train_loop.config import TrainConfig

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run. One process at a time holds it, from `hold` or `open` to `release` or its end.

    The lock belongs to the process, so loader workers that outlive it do not keep the lock.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Change nothing on the disk."""
        self._config = config
        self.path = Path(config.output_dir)
        self.later: Sequence[RunFolder] = ()  # those of the phases after it
        self._lock: int | None = None  # a file descriptor, open while it is held

    def hold(self) -> None:
        """Hold the folder, if it exists. Raises ValueError if the settings do not allow it, or another run uses it."""
        config, shown = self._config, f"output_dir={str(self.path)!r}"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{shown} is a file: choose a folder")
        is_used = any((self.path / name).exists() for name in run_files.CONTENTS)
        if is_used and not (config.overwrite_output_dir or config.resume_from_checkpoint):
            raise ValueError(
                f"{shown} holds another run: go on with it by --resume_from_checkpoint latest, "
                "delete it by --overwrite_output_dir, or choose another folder"
            )
        if self._lock is not None or not self.path.exists():
            return
        lock = os.open(self.path / run_files.LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"{shown} is in use by another run: wait for its end, or choose another") from error
            logger.warning("%s cannot be locked (%s): start no second run in it", shown, error)
        self._lock = lock

    def open(self, settings: Settings) -> None:
        """Make and `hold` the folder, delete the files of an old run if the settings say so, and write the settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.hold()
        if self._config.overwrite_output_dir:
            for path in (folder.path / name for folder in (*self.later, self) for name in run_files.CONTENTS):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        text = yaml.safe_dump(settings.as_dict(), sort_keys=False)
        (self.path / run_files.CONFIG).write_text(text, encoding="utf-8")

    def release(self) -> None:
        """Let other processes use the folder while this one goes on."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
