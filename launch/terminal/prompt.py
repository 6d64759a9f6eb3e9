"""Asks for texts one by one, and keeps their history for the arrow keys of the next session."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.terminal.tables import print_fills
from launch.terminal.texts import target_words
from train_loop.inference.fill_mask import FillMask
from train_loop.inference.probes import own_mask

_HISTORY = Path("~/.cache/mlm-train-loop/fill_mask_history")
_ENDS = (":quit", "quit", "exit")
_HELP = """\
a text with {mask} (or <mask>, [MASK])   its fills
:top_k 10         the number of fills
:targets a,b      score these words; without words: the best of all
:joint beam       fit several masks to each other: left_to_right, confidence, beam; without: each alone
:help  :quit (or exit, quit)"""


def prompt(fill_mask: FillMask, settings: dict[str, Any]) -> None:
    """Answer texts and commands until ``exit`` or the end of the input; an error is printed, and the prompt returns.

    The settings are keyword arguments of `FillMask.__call__`; commands change them for the prompt.
    """
    mask_token = str(fill_mask.tokenizer.mask_token)
    print(f"Write a text with {mask_token}; :help lists the commands, exit ends.")
    with _history():
        while (line := _read()) not in _ENDS:
            try:
                if line == ":help":
                    print(_HELP.format(mask=mask_token))
                elif line.startswith(":"):
                    settings = settings | _changed(line, fill_mask)
                elif line:
                    text = own_mask(line, fill_mask.tokenizer)
                    print_fills(text, fill_mask(text, **settings))
            except ValueError as error:
                print(f"error: {error}")


def _changed(line: str, fill_mask: FillMask) -> dict[str, Any]:
    """The setting that a command changes, with its new value."""
    name, _, words = line[1:].partition(" ")
    words = words.strip()
    if name == "top_k":
        if words and not words.isdigit():
            raise ValueError(f":top_k {words} must be a whole number")
        return {name: int(words) if words else None}
    if name == "targets":
        return {name: target_words(words, fill_mask.tokenizer) if words else None}
    if name == "joint":
        return {name: words or None}
    raise ValueError(f"{line!r} is no command: :top_k, :targets, :joint, :help, :quit")


def _read() -> str:
    """The next line: empty after Ctrl-C, ``:quit`` at the end of the input."""
    try:
        return input("> ").strip()
    except (KeyboardInterrupt, EOFError) as end:
        print()
        return "" if isinstance(end, KeyboardInterrupt) else ":quit"


@contextlib.contextmanager
def _history() -> Iterator[None]:
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
