"""The values of a JSON file, one after the other. Only one of them is in memory, however long the file is."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHARACTERS_AT_ONCE = 1 << 16
_LONGEST = 1 << 27  # characters of a value
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def json_values(file: TextIO) -> Iterator[Any]:
    """Yield the values of an array, or those that stand one after the other; a ValueError says what is wrong then."""
    text = _Text(file)
    if not text.take("["):
        while text.peek():
            yield text.value()
        return
    if not text.take("]"):
        yield text.value()
        while text.take(","):
            yield text.value()
        if not text.take("]"):
            raise ValueError("another value follows without a comma" if text.peek() else "the array has no end")
    if text.peek():
        raise ValueError("there is more behind the array")


class _Text:
    """The rest of a file from the current position on."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """The next character that is not a space; '' at the end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text) or not self._read_on():
                return self._text[self._position : self._position + 1]

    def take(self, character: str) -> bool:
        """Whether the next character is this one; if so, it is consumed."""
        is_next = self.peek() == character
        self._position += is_next
        return is_next

    def value(self) -> Any:
        """Decode the next value. Raises ValueError if there is none."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # A value that is cut off is wrong near the end of the text; an unfinished string, at its start.
                is_cut = error.pos > len(self._text) - 8 or error.msg.startswith("Unterminated")
                if not is_cut or not self._read_on():
                    raise ValueError(error.msg) from error
            else:
                if end < len(self._text) or not self._read_on():  # a number may continue in the unread text
                    self._position = min(end, len(self._text))
                    return value

    def _read_on(self) -> bool:
        """Read as much again as is left, so that a long value is decoded few times; False at the end of the file."""
        rest = self._text[self._position :]
        if len(rest) > _LONGEST:
            raise ValueError(f"a value is longer than {_LONGEST:,} characters")
        more = self._file.read(max(_CHARACTERS_AT_ONCE, len(rest)))
        self._text, self._position = rest + more, 0
        return bool(more)
