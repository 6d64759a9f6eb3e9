"""Asks for texts one by one, and keeps their history for the arrow keys of the next session."""

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
:top_k 10         the number of fills
:targets a,b      score these words; without words: the best of all
:joint beam       fit several masks to each other: left_to_right, confidence, beam; without: each alone
:help  :quit"""


def prompt(fill_mask: FillMask, settings: dict[str, Any]) -> None:
    """Answer texts and commands until ``:quit`` or the end of the input; an error is printed, and the prompt returns.

    Args:
        settings: Keyword arguments of `FillMask.__call__`; the commands change a copy of them.
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
    """The next line: empty after Ctrl-C, None at the end of the input."""
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
    """Line editing and history, if this Python has readline; a history file that cannot be used is ignored."""
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
