"""P7's first half: the answers of ``pipeline("fill-mask")``, from explicit logits."""

import re

import pytest
from transformers import PreTrainedTokenizerBase, pipeline

from tests.models import tiny_model
from train_loop import FillMask

ONE = "the cat <mask> on a mat"
TWO = "the <mask> sat on <mask> mat"
LONG = "then it saw two <mask> run after one red ball over every green hill in town and the cat sat"


def _parts(family: str, tokenizer: PreTrainedTokenizerBase) -> tuple[FillMask, object]:
    model = tiny_model(family).eval()
    return FillMask(model, tokenizer), pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")


def _assert_same(ours: object, theirs: object) -> None:
    """Same structure, tokens, strings and order; scores to 1e-5 relative."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            _assert_same(a, b)
    elif isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
        assert {k: v for k, v in ours.items() if k != "score"} == {k: v for k, v in theirs.items() if k != "score"}


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert", "albert", "xlm-roberta"])
@pytest.mark.parametrize("texts", [ONE, TWO, LONG, [ONE, LONG], [TWO, ONE, LONG, TWO]])
def test_answers_are_the_pipelines(family: str, texts: str | list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    fill_mask, pipe = _parts(family, tokenizer)
    _assert_same(fill_mask(texts, top_k=4), pipe(texts, top_k=4))  # type: ignore[operator]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_changes_nothing(batch_size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    fill_mask, _ = _parts("roberta", tokenizer)
    texts = [ONE, LONG, TWO, ONE, "<mask>"]
    _assert_same(fill_mask(texts, batch_size=batch_size), [fill_mask(text) for text in texts])


def test_a_list_of_one_stays_a_list(tokenizer: PreTrainedTokenizerBase) -> None:
    """The pipeline unwraps it; a program that passes lists wants one answer for each text."""
    fill_mask, _ = _parts("bert", tokenizer)
    assert fill_mask([ONE]) == [fill_mask(ONE)]
    assert fill_mask([]) == []


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("the cat sat", 5, "no mask token in 'the cat sat': write <mask> where"),
        ("", 5, "no mask token in ''"),
        (ONE, 0, "top_k=0 must be between 1 and 300"),
        (ONE, 301, "top_k=301 must be between 1 and 300"),
        ("<mask>" + " the cat" * 100, 5, "longer than the model's 64 positions"),
    ],
)
def test_bad_input_is_one_clear_line(text: str, top_k: int, message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    fill_mask, _ = _parts("roberta", tokenizer)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fill_mask(text, top_k=top_k)
    assert "\n" not in str(caught.value)


def test_what_is_no_masked_language_model_is_one_clear_line(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="cannot be loaded for masked language modeling") as caught:
        FillMask.from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)
