"""A function by its name, or from a file of the user's own: ``path/to/file.py:name``."""

import difflib
import hashlib
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def find(setting: str, name: str, registry: Mapping[str, F]) -> F:
    """The function that a setting names.

    A path is for the command line and recipes alone: no file is run because a checkpoint or a repository names it.

    Args:
        setting: For messages.
        name: A name in ``registry``, or ``path/to/file.py:name``; the function is then an `OwnFunction`.

    Raises:
        ValueError: There is no such name or file, or the file cannot be run.
    """
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        try:
            source = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"{setting}={name!r}: {path} cannot be read: {error.strerror}") from error
        return cast(F, OwnFunction(setting, path, attribute, source))
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=1)
    raise ValueError(
        f"{setting}={name!r} must be one of: {', '.join(registry)}, or path/to/file.py:name"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


class OwnFunction:
    """A function from a user's file. It has the function's attributes.

    It takes the file's content along when it is pickled, so that a spawned worker runs what the run began with,
    whatever has become of the file.

    Attributes:
        sha256: Of the file; what the file imports is not in it.
    """

    def __init__(self, setting: str, path: str, name: str, source: bytes) -> None:
        self._arguments = (setting, path, name, source)
        self.sha256 = hashlib.sha256(source).hexdigest()
        where = f"{setting}={f'{path}:{name}'!r}"
        try:
            names = _run(path, source)
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            at = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"{where}: {path}{at}: {type(error).__name__}: {error}") from error
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(f"{where}: {path} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        self._function = names[name]
        if not callable(self._function):
            raise ValueError(f"{where}: {name} is no function, its type is {type(self._function).__name__}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __reduce__(self) -> tuple[type, tuple[str, str, str, bytes]]:
        return type(self), self._arguments


@lru_cache
def _run(path: str, source: bytes) -> dict[str, Any]:
    """The names that a file defines; the same content runs once in a process."""
    module = sys.modules[path] = ModuleType(path)  # dataclasses look for the module of their class
    module.__file__ = path
    exec(compile(source, path, "exec"), module.__dict__)
    return module.__dict__
