"""Probes: sentences with one ``<mask>`` that a run fills at each evaluation, to watch a model learn."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop.inference.fill_mask import FillMask
from train_loop.model import max_positions

_NUM_TEXTS = 1000  # to look at: in a language without spaces, no sentence is found in any
_MOST_CHARACTERS = 50  # of a probe, so that it and its fills are one line
_FEWEST_WORDS = 5


def choose_probes(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, most: int = 4) -> tuple[str, ...]:
    """Short sentences of different texts, in which ``<mask>`` stands for the longest word that is one token."""
    probes: dict[str, None] = {}  # in their order, each once
    for text in itertools.islice(texts, _NUM_TEXTS):
        sentences = re.split(r"(?<=[.!?])\s+|\n+", text)
        found = next((probe for sentence in sentences if (probe := _with_gap(sentence, tokenizer))), None)
        if found is not None:
            probes[found] = None
        if len(probes) == most:
            break
    return tuple(probes)


def _with_gap(sentence: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    words = sentence.split()
    num_plain = sum(word.rstrip(",.;:!?").isalpha() for word in words)
    if num_plain < max(_FEWEST_WORDS, len(words) - 1) or len(sentence) > _MOST_CHARACTERS:
        return None  # code, a table, or too long
    num_tokens = len(tokenizer(" ".join(words), verbose=False)["input_ids"])
    for i in sorted(range(len(words)), key=lambda i: -len(words[i])):
        probe = " ".join([*words[:i], "<mask>", *words[i + 1 :]])
        row = tokenizer(own_mask(probe, tokenizer), verbose=False)["input_ids"]
        if words[i].isalpha() and len(row) == num_tokens and row.count(tokenizer.mask_token_id) == 1:
            return probe
    return None


def check_probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]) -> None:
    """Raise ValueError for a probe that the model could not fill at the first evaluation."""
    if probes and model.get_output_embeddings() is None:
        raise ValueError(f"probe: a {type(model).__name__} has no head that fills masks: use --probe none")
    for probe in probes:
        row = tokenizer(own_mask(probe, tokenizer), verbose=False)["input_ids"]
        if (num_masks := row.count(tokenizer.mask_token_id)) != 1:
            raise ValueError(
                f"probe {probe!r} has {num_masks} masks for this tokenizer, whose mask token is "
                f"{tokenizer.mask_token}: write one <mask>, where a word is missing"
            )
        if len(row) > (longest := max_positions(model)):
            raise ValueError(
                f"probe {probe!r} is {len(row):,} tokens long, more than the model's {longest:,} positions: shorten it"
            )


def fill_probes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]
) -> list[dict[str, Any]]:
    """The 3 most probable fills of each probe, in the form of ``metrics.jsonl``."""
    answers = FillMask(model, tokenizer)([own_mask(probe, tokenizer) for probe in probes], top_k=3)
    return [
        {"text": probe, "fills": [{"token_str": fill["token_str"], "score": fill["score"]} for fill in fills]}
        for probe, fills in zip(probes, answers, strict=True)
    ]


def own_mask(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with ``<mask>`` and ``[MASK]`` replaced by the tokenizer's own mask token."""
    return text.replace("<mask>", str(tokenizer.mask_token)).replace("[MASK]", str(tokenizer.mask_token))
