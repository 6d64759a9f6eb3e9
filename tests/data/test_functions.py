"""A function from a user's file: what it was when it was found, also for a worker."""

import pickle
from pathlib import Path

import pytest

from data.functions import OwnFunction, find


def test_it_keeps_its_attributes_and_its_content_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def double(x):\n    return 2 * x\n\n\ndouble.needs_words = True\n")
    first = find("masking", f"{path}:double", {"abs": abs})
    path.write_text("def double(x):\n    return x + x + 1\n")
    sent = pickle.loads(pickle.dumps(first))
    assert isinstance(first, OwnFunction)
    assert (first(3), sent(3), sent.needs_words, sent.sha256) == (6, 6, True, first.sha256)
    second = find("masking", f"{path}:double", {"abs": abs})
    assert second(3) == 7
    assert not hasattr(second, "needs_words")


def test_a_file_may_define_dataclasses_with_annotations_that_are_texts(tmp_path: Path) -> None:
    """dataclasses look for such annotations in the class's module."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Pair:\n    left: int\n    right: list[int]\n"
    )
    assert find("optimizer", f"{path}:Pair", {"abs": abs})(1, [2]).right == [2]


def test_a_registered_name_is_the_registered_function() -> None:
    assert find("masking", "abs", {"abs": abs}) is abs
    with pytest.raises(
        ValueError, match=r"masking='ab' must be one of: abs, or path/to/file.py:name; did you mean 'abs'"
    ):
        find("masking", "ab", {"abs": abs})
