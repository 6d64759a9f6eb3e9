"""The folder of a run: whether it may be used, who uses it, and how it begins."""

import errno
import fcntl
import logging
import os
import shutil
from pathlib import Path

import yaml

from launch.run.settings import Settings
from train_loop import run_files

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run, held by one process at a time, from `hold` or `open` to the end of that process.

    The lock is the process's own, so loader workers that outlive it do not keep it.
    """

    def __init__(self, settings: Settings) -> None:
        """Touch nothing yet."""
        self._settings = settings
        self.path = Path(settings.train.output_dir)
        self._lock: int | None = None  # a file descriptor, open until the process ends

    def hold(self) -> None:
        """Hold the folder, if it is there.

        Raises:
            ValueError: It may not be used as the settings say, or another run uses it.
        """
        _check_output_dir(self._settings)
        if self._lock is not None or not self.path.exists():
            return
        lock = os.open(self.path / run_files.LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"output_dir={str(self.path)!r} is in use by another run: wait for its end, or choose another one"
                ) from error
            logger.warning("output_dir=%r cannot be locked (%s): start no second run in it", str(self.path), error)
        self._lock = lock

    def open(self) -> None:
        """Make and hold the folder and write the resolved settings; delete an old run, and no more, where asked to.

        Raises:
            ValueError: See `hold`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.hold()
        if self._settings.train.overwrite_output_dir:
            for name in run_files.CONTENTS:
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        text = yaml.safe_dump(self._settings.as_dict(), sort_keys=False)
        (self.path / run_files.CONFIG).write_text(text, encoding="utf-8")


def _check_output_dir(settings: Settings) -> None:
    """Raise ValueError if the output folder holds a run that is neither to go on nor to be deleted."""
    config = settings.train
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={config.output_dir!r} is a file")
    if config.overwrite_output_dir and config.resume_from_checkpoint:
        raise ValueError("overwrite_output_dir deletes the run and resume_from_checkpoint goes on with it: give one")
    held = any((folder / name).exists() for name in run_files.CONTENTS)
    if held and not (config.overwrite_output_dir or config.resume_from_checkpoint):
        raise ValueError(
            f"output_dir={config.output_dir!r} holds another run: go on with it by --resume_from_checkpoint latest, "
            "delete it by --overwrite_output_dir, or choose another folder"
        )
