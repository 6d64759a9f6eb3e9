"""Texts asked for one by one, with the arrow keys' history kept from one session to the next."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.terminal.tables import print_fills
from launch.terminal.texts import own_mask, target_words
from train_loop.inference.fill_mask import FillMask

_HISTORY = Path("~/.cache/mlm-train-loop/fill_mask_history")
_HELP = """\
a text with {mask} (or <mask>, [MASK])   its fills
:top_k 10         so many fills
:targets a,b      score these words; without words: any word again
:joint beam       fit several masks to each other: left_to_right, confidence, beam; without: each by itself
:help  :quit"""


def prompt(fill_mask: FillMask, settings: dict[str, Any]) -> None:
    """Answer texts and commands until ``:quit`` or the end of the input; a mistake is a line, and the next prompt.

    Args:
        settings: Keywords of `FillMask.__call__`, which the commands change.
    """
    mask_token = str(fill_mask.tokenizer.mask_token)
    commands: dict[str, Callable[[str], Any]] = {
        "top_k": _count,
        "targets": lambda words: target_words(words, fill_mask.tokenizer) if words else None,
        "joint": lambda words: words or None,
    }
    settings = dict(settings)
    print(f"Write a text with {mask_token}; :help lists the commands, :quit ends.")
    with _history():
        while (line := _read()) is not None and line != ":quit":
            if line == ":help":
                print(_HELP.format(mask=mask_token))
            elif line:
                try:
                    if line.startswith(":"):
                        _change(settings, line, commands)
                    else:
                        text = own_mask(line, mask_token)
                        print_fills(text, fill_mask(text, **settings))
                except ValueError as error:
                    print(f"error: {error}")


def _change(settings: dict[str, Any], line: str, commands: dict[str, Callable[[str], Any]]) -> None:
    name, _, words = line[1:].partition(" ")
    if name not in commands:
        raise ValueError(f"{line!r} is no command: {', '.join(f':{known}' for known in [*commands, 'help', 'quit'])}")
    try:
        settings[name] = commands[name](words.strip())
    except ValueError as error:
        raise ValueError(f":{name} {words} must be {error}") from error


def _count(words: str) -> int | None:
    if words and not words.isdigit():
        raise ValueError("a whole number")
    return int(words) if words else None


def _read() -> str | None:
    """A line; empty after Ctrl-C, None at the end of the input."""
    try:
        return input("> ").strip()
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        print()
        return None


@contextlib.contextmanager
def _history() -> Any:
    """Editing and history, where this Python has readline; a history that cannot be kept is no reason to stop."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = _HISTORY.expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(path)
