"""Many threads ask one `FillMask` or `TextScorer`, as in a server, and get the answers that one thread gets."""

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

from tests.conftest import sentences
from tests.models import sharpened, tiny_model
from tests.tokenizers import tokenizer_like
from train_loop import FillMask, TextScorer

THREADS = 8


def _in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of calls that begin at once."""
    start = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=start.wait) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def _approximately(answer: Any) -> Any:
    """The same with numbers that may differ by rounding."""
    if isinstance(answer, dict):
        return {key: pytest.approx(value, rel=1e-4) if key == "score" else value for key, value in answer.items()}
    return [_approximately(item) for item in answer]


def _fill_calls(fill_mask: FillMask) -> list[Callable[[], Any]]:
    """Calls of many kinds: of texts, lengths, numbers of masks and settings."""
    generator = random.Random(0)
    mask = str(fill_mask.tokenizer.mask_token)
    texts = []
    for sentence in sentences(60):
        words = sentence.split()[: generator.randint(3, 12)]
        for place in generator.sample(range(2), generator.randint(1, 2)):
            words[place] = mask
        texts.append(" ".join(words))
    kinds: list[dict[str, Any]] = [
        {"top_k": 3},
        {"targets": ["cat", "unbelievable"]},
        {"joint": "beam", "top_k": 2, "num_beams": 3},
        {"tokenizer_kwargs": {"truncation": True, "max_length": 12}},
    ]
    parts = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    return [partial(fill_mask, part, **kind) for part, kind in zip(parts, itertools.cycle(kinds), strict=False)] * 4


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_many_threads_fill_masks_as_one_does(family: str, is_training: bool) -> None:
    """RoBERTa gathers in its last layer, ModernBERT after it; a model in training has dropout."""
    model = sharpened(tiny_model(family)).train(is_training)
    fill_mask = FillMask(model, tokenizer_like(family))
    calls = _fill_calls(fill_mask)
    expected = [call() for call in calls]
    for answer, alone in zip(_in_threads(calls), expected, strict=True):
        assert answer == _approximately(alone)
    assert model.training == is_training


def test_many_threads_score_texts_as_one_does() -> None:
    """Also beside another user of the same model."""
    model, tokenizer = sharpened(tiny_model("roberta")).eval(), tokenizer_like("roberta")
    score, fill_mask = TextScorer(model, tokenizer), FillMask(model, tokenizer)
    texts = [sentence[: 20 + i] for i, sentence in enumerate(sentences(40))]
    scores = [partial(score, text, within_word=bool(i % 2)) for i, text in enumerate(texts)]
    fills = _fill_calls(fill_mask)[: len(scores)]
    expected = [call().log_probs for call in scores]
    both = _in_threads([call for pair in zip(scores, fills, strict=True) for call in pair])
    for result, alone in zip(both[::2], expected, strict=True):
        assert result.log_probs == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_model_that_was_asked_is_still_the_users() -> None:
    """Asked for all its logits by somebody else, in the middle of our calls."""
    model, tokenizer = sharpened(tiny_model("roberta")).eval(), tokenizer_like("roberta")
    fill_mask = FillMask(model, tokenizer)
    input_ids = torch.tensor([tokenizer(sentences(1)[0])["input_ids"]])

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=input_ids).logits

    alone = theirs()
    both = _in_threads([call for ours in _fill_calls(fill_mask) for call in (ours, theirs)])
    assert all(torch.allclose(logits, alone, atol=1e-4) for logits in both[1::2])
