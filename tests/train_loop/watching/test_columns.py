"""Text fits into a terminal's columns, and stays whole where there is none."""

import pytest

from train_loop.watching.columns import excerpt, width, wrap

TEXT = "If the file does not exist, an <mask> is raised."


def test_lines_are_broken_at_spaces_and_colours_have_no_width() -> None:
    words = [f"\x1b[30;43m{'x' * n}\x1b[0m" for n in (4, 4, 5, 12)]
    lines = wrap(" ".join(words), 12, "  ").split("\n")
    assert [line.removeprefix("  ").split(" ") for line in lines] == [words[:2], [words[2]], [words[3]]]
    assert wrap("a  b", 12) == "a  b"
    assert wrap("  a b", 12) == "  a b"
    assert wrap("日本 語 a", 7) == "日本 語\na"
    assert wrap("one two three", 12, "label  ") == "label  one\n       two\n       three"
    assert wrap("one two three", None, "label  ") == "label  one two three"


@pytest.mark.parametrize("columns", [16, 24, 40, 47])
def test_an_excerpt_keeps_what_it_is_about(columns: int) -> None:
    shown = excerpt(TEXT, columns, TEXT.index("<mask>"))
    assert width(shown) <= columns
    assert "<mask>" in shown
    assert shown.strip("…") in TEXT
    assert (shown[0] == "…", shown[-1] == "…") == (not TEXT.startswith(shown[:5]), not TEXT.endswith(shown[-5:]))


def test_what_fits_or_has_no_limit_is_whole() -> None:
    assert excerpt(TEXT, len(TEXT)) == excerpt(TEXT, None, 31) == TEXT
    assert excerpt("日本語日本語", 7) == "日本語…"
