"""Minimal pairs, beside a plain loop, and on a grammar that a model has learned."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.blocks.tokenization import train_bpe
from tests.conftest import sentences
from tests.models import sharpened, tiny_model
from train_loop import TextScorer
from train_loop.inference.pairs import Pair, _wilson, judge

PAIRS = [Pair(text, " ".join(reversed(text.split())), "ab"[i % 2]) for i, text in enumerate(sentences(11))]


def _plain(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """The pseudo-log-likelihood, token by token."""
    ids = tokenizer(text)["input_ids"]
    total = 0.0
    for i, special in enumerate(tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)):
        if not special:
            masked = torch.tensor([[*ids[:i], tokenizer.mask_token_id, *ids[i + 1 :]]])
            with torch.no_grad():
                total += float(F.log_softmax(model(masked).logits[0, i], -1)[ids[i]])
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_answers_are_those_of_a_plain_loop(tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    model = sharpened(tiny_model("roberta", vocab_size=300)).eval()
    found = judge(TextScorer(model, tokenizer), iter(PAIRS), batch_size=batch_size)
    right = [_plain(model, tokenizer, pair.good) > _plain(model, tokenizer, pair.bad) for pair in PAIRS]
    for group, answers in {"a": right[::2], "b": right[1::2], "all": right}.items():
        assert (found[group].num, found[group].accuracy) == (len(answers), pytest.approx(sum(answers) / len(answers)))
    assert 0 < sum(right) < len(right)  # or any answer would do
    assert list(found) == ["a", "b", "all"]


def test_equally_probable_sentences_count_half(tokenizer: PreTrainedTokenizerBase) -> None:
    same = [Pair(pair.good, pair.good, "same") for pair in PAIRS]
    assert judge(TextScorer(tiny_model("bert").eval(), tokenizer), same)["all"].accuracy == 0.5


@pytest.mark.parametrize(
    ("right", "num", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (5, 5, 0.5655, 1)]
)
def test_the_interval_is_wilsons(right: int, num: int, low: float, high: float) -> None:
    """Values as in Brown, Cai and DasGupta (2001), by hand."""
    assert _wilson(right / num, num)[2:] == pytest.approx((low, high), abs=1e-4)


def _planted(rng: random.Random, num: int) -> Iterator[tuple[str, str]]:
    """Sentences in which the last word repeats the kind of the first, and the same with the other kind.

    A unigram model gives both the same probability: each ending is as frequent as the other.
    """
    for _ in range(num):
        kind = rng.randrange(2)
        middle = " ".join(rng.choice(["red", "ball", "town", "hill"]) for _ in range(2))
        first, endings = ("cat", "dog")[kind], ("runs", "sits")
        yield f"{first} {middle} {endings[kind]}", f"{first} {middle} {endings[1 - kind]}"


def test_a_planted_grammar_is_found_where_a_unigram_model_guesses() -> None:
    rng = random.Random(0)
    texts = [good for good, _ in _planted(rng, 400)]
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "unk_token": "<unk>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_bpe([texts], 290), **special)
    model = tiny_model("modernbert", vocab_size=len(tokenizer))
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        batch = ids[torch.randint(len(ids), (32,), generator=generator)]
        chosen = (torch.rand(batch.shape, generator=generator) < 0.2) & (batch > 4)
        labels = torch.where(chosen, batch, -100)
        model(torch.where(chosen, tokenizer.mask_token_id, batch), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pairs = [Pair(good, bad, "agreement") for good, bad in _planted(rng, 100)]
    assert judge(TextScorer(model.eval(), tokenizer), pairs)["all"].low > 0.9
    counts = torch.bincount(ids.flatten(), minlength=len(tokenizer)).double()

    def unigram(text: str) -> float:
        return float(counts[tokenizer(text)["input_ids"]].log().sum())

    right = sum(unigram(pair.good) > unigram(pair.bad) for pair in pairs)
    assert 0.3 < right / len(pairs) < 0.7  # five standard deviations of a coin are 0.25


def test_a_suite_of_templates_fits_the_tokenizer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    from launch.run.suite import english

    texts = [f"The {word} is new. The {word}s are small." for word in ("value", "file", "name", "object", "string")]
    special = {"pad_token": "<pad>", "mask_token": "<mask>"}
    knows = PreTrainedTokenizerFast(tokenizer_object=train_bpe([texts * 50], 420), **special)
    pairs = list(english(knows))
    agreement = [pair for pair in pairs if pair.group == "subject and verb"]
    assert {pair.good.split()[1].rstrip("s") for pair in agreement} == {"value", "file", "name", "object", "string"}
    all_words = [pair for pair in english(tokenizer) if pair.group == "determiner and noun"]
    assert len(all_words) > 50  # a tokenizer that knows none of the words is asked with all of them
    for pair in pairs:
        assert pair.good != pair.bad
        assert len({*pair.good.split()} ^ {*pair.bad.split()}) <= 2  # in one word, or in the order
    assert len({pair.group for pair in pairs}) == 7
