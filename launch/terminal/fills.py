"""Shows fills as tables, with bars in a terminal, and asks for texts one by one."""

import contextlib
from typing import TYPE_CHECKING, Any

from launch.terminal.token_text import visible
from train_loop.watching.columns import excerpt, say, terminal_columns, width

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerBase

    from train_loop.inference.fill_mask import FillMask

_BAR_WIDTH = 16
_ENDS = (":quit", "quit", "exit")
_HELP = """\
a text with {mask} (or <mask>, [MASK])   its fills
:top_k 10         the number of fills
:targets a,b      score these words; without words: the best of all
:joint beam       fit several masks to each other: left_to_right, confidence, beam; without: each alone
:help  :quit (or exit, quit)"""


def print_fills(text: str, fills: list[Any]) -> None:
    """Print the text, and below it the fills of each mask, or the joint fills of all masks."""
    say(text)
    masks = [fills] if isinstance(fills[0], dict) else fills
    for number, fills_of_mask in enumerate(masks, start=1):
        if len(masks) > 1:
            print(f"  mask {number}")
        _print_table(text, fills_of_mask)


def _print_table(text: str, fills: list[dict[str, Any]]) -> None:
    """Print one fill a line: its probability, its words, the part of the sentence around them that fits."""
    token_strs = [[fill["token_str"]] if isinstance(fill["token_str"], str) else fill["token_str"] for fill in fills]
    words = [visible(" | ".join(map(str.strip, parts))) for parts in token_strs]
    longest = max(map(width, words))
    columns = terminal_columns()
    room = None if columns is None else max(columns - len("   12.3%") - _BAR_WIDTH - longest - 6, 20)
    for fill, word in zip(fills, words, strict=True):
        score = fill["score"]
        percent = f"{score:6.1%}" if score >= 0.0005 else f"{score:6.0e}"  # 2e-05 would be 0.0%
        shown = "" if columns is None else f"{'█' * round(score * _BAR_WIDTH):{_BAR_WIDTH}}  "
        pad = " " * (longest - width(word))
        sequence = visible(fill["sequence"])
        start = next((i for i, (a, b) in enumerate(zip(text, sequence, strict=False)) if a != b), 0)  # of the fill
        print(f"  {percent}  {shown}{word}{pad}  {excerpt(sequence, room, start)}")


def target_words(words: str, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """``a,b`` as targets, each a word of its own.

    A mask token with ``lstrip`` also replaces the space before it, so a target needs that space: for RoBERTa, `` cat``
    is a word and ``cat`` the end of one. A target in the vocabulary's spelling (``Ġcat``, ``▁cat``) stays as it is.
    """
    targets = [word.strip() for word in words.split(",")]
    if not tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip:
        return targets
    return [target if target.startswith(("Ġ", "▁")) else f" {target}" for target in targets]


def prompt(fill_mask: "FillMask", settings: dict[str, Any]) -> None:
    """Answer texts and commands until ``exit`` or the end of the input; an error is printed, and the prompt returns.

    The settings are keyword arguments of `FillMask.__call__`; commands change them for the prompt.
    """
    from train_loop.inference.probes import own_mask

    mask_token = str(fill_mask.tokenizer.mask_token)
    print(f"Write a text with {mask_token}; :help lists the commands, exit ends.")
    with contextlib.suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401 - from now on, the arrow keys edit a line and bring earlier ones

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


def _changed(line: str, fill_mask: "FillMask") -> dict[str, Any]:
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
