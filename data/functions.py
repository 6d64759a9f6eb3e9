"""A function by its name, or from a file of the user: ``path/to/file.py:name``."""

import difflib
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
# (setting and value, result, *arguments) -> None: raises DataError for a result that is not as the setting needs it.
Check = Callable[..., None]


def find(setting: str, name: str, registry: Mapping[str, F], check: Check | None = None) -> F:
    """The function that a setting names: one of the registry, or by ``path/to/file.py:name`` a checked `OwnFunction`.

    A path is for the command line and recipes alone: no file is run because a checkpoint or a repository names it.
    Raises ValueError if there is no such name or file, or the file cannot be run.
    """
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        try:
            source = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise ValueError(f"{setting}={name!r}: {path} cannot be read: {error.strerror}") from error
        return cast(F, OwnFunction(setting, path, attribute, source, check))
    if name in registry:
        return registry[name]
    choices = f"{', '.join(registry)}, or path/to/file.py:name"
    raise ValueError(f"{setting}={name!r} must be one of: {choices}{did_you_mean(name, registry)}")


class OwnFunction:
    """A function from a user's file, with the attributes of that function.

    When pickled it takes the file's content along, so that a spawned worker runs the same code as the run, even if
    the file has changed since.
    """

    def __init__(self, setting: str, path: str, name: str, source: bytes, check: Check | None) -> None:
        self._arguments = (setting, path, name, source, check)
        self.sha256 = hashlib.sha256(source).hexdigest()  # of the file, without what the file imports
        self._where = f"{setting}={f'{path}:{name}'!r}"
        self._check = check
        try:
            names = _run(path, source)
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            at = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"{self._where}: {path}{at}: {type(error).__name__}: {error}") from error
        if name not in names:
            raise ValueError(f"{self._where}: {path} has no {name!r}{did_you_mean(name, names)}")
        self._function = names[name]
        if not callable(self._function):
            raise ValueError(f"{self._where}: {name} is not a function, its type is {type(self._function).__name__}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function and check its result."""
        result = self._function(*args, **kwargs)
        if self._check is not None:
            self._check(self._where, result, *args)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), self._arguments


def described(value: Any) -> str:
    """The type and shape of a result, for messages: ``(int64[3], float64[2, 4])``."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    return type(value).__name__


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """The end of an error for a name that is none of ``names``: the likest one, or another hint."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else otherwise and f"; {otherwise}"


@lru_cache
def _run(path: str, source: bytes) -> dict[str, Any]:
    """The names that a file defines; the same content runs once in a process."""
    module = sys.modules[path] = ModuleType(path)  # dataclasses look for the module of their class
    module.__file__ = path
    exec(compile(source, path, "exec"), module.__dict__)
    return module.__dict__
