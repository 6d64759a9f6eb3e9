"""How a command ends when something is wrong.

A user error is what the user can mend: every command prints it in one line and exits with code 2.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser that keeps the lines of its help texts, and raises ValueError for a wrong word."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawTextHelpFormatter, **keywords})

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(message)


def is_local_main() -> bool:
    """Whether this process prints for its machine. Accelerate need not have started."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def fail(message: object, code: int = 2, *, is_alone: bool = False) -> NoReturn:
    """Print one line, once on each machine, and exit; code 2 is for user errors.

    With ``is_alone``, perhaps only this process has the error: it prints the line with its number.
    """
    who = f"process {os.environ['RANK']}: " if is_alone and int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    if is_alone or is_local_main():
        print(f"error: {who}{' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def one_line_errors(command: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Decorates a command that prints results: ValueError and OSError are user errors, a closed output is none."""

    @functools.wraps(command)
    def main(arguments: list[str]) -> None:
        try:
            command(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # as of ``| head``
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (ValueError, OSError) as error:
            fail(error)

    return main
