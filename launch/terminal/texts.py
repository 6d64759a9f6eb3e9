"""Opens the texts of a command: its arguments, a file or standard input."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.run.errors import OneLineParser


def text_parser(prog: str, description: str) -> OneLineParser:
    """A parser with the options that `open_texts`, `as_json` and the models read."""
    parser = OneLineParser(prog=prog, description=description)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: one a line of --file or standard input")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder of a run or a model, or a Hub id")
    parser.add_argument("--file", metavar="PATH", help=".txt, .jsonl, .csv, .parquet ..., also .gz and .zst")
    parser.add_argument("--text_column", default="text", metavar="NAME", help="dotted if nested (default: text)")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="texts in one forward (default: 32)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--dtype", help="such as bfloat16 (default: float32)")
    when = "one JSON line a text (default: where a file or a pipe is both read and written)"
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, help=when)
    return parser


def as_json(options: argparse.Namespace) -> bool:
    """Whether to print JSON lines for a program, rather than a table for a person."""
    return options.json if options.json is not None else not (options.texts or sys.stdout.isatty())


def open_texts(options: argparse.Namespace) -> Iterator[str]:
    """The texts of a command, without blank lines. If results do not go to the terminal, it shows a progress bar."""
    if options.file is None:
        return iter(options.texts or (line.rstrip("\r\n") for line in sys.stdin if line.strip()))
    if options.texts:
        raise ValueError("give texts or --file, not both")
    path = Path(options.file).expanduser()
    if not path.is_file():
        raise ValueError(f"--file {options.file}: no such file")
    from tqdm import tqdm

    from data.documents import files  # imports fsspec
    from data.documents.documents import texts_of_file

    if files.file_format(str(path)) is None:
        raise ValueError(f"--file {options.file} must be one of {files.KNOWN_FORMATS}")
    shows_bar = sys.stderr.isatty() and not sys.stdout.isatty()
    total = sum(1 for _ in texts_of_file(path, options.text_column)) if shows_bar else None
    rows = tqdm(texts_of_file(path, options.text_column), total=total, unit=" texts", disable=not shows_bar)
    return (text for (text,) in rows)
