"""Probes: sentences with one ``<mask>`` that a run fills at each evaluation, to watch a model learn."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop.inference.fill_mask import FillMask
from train_loop.model import max_positions


def check_probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]) -> None:
    """Raise ValueError for a probe that the model could not fill at the first evaluation."""
    for probe in probes:
        row = tokenizer(_with_own_mask(probe, tokenizer), verbose=False)["input_ids"]
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
    answers = FillMask(model, tokenizer)([_with_own_mask(probe, tokenizer) for probe in probes], top_k=3)
    return [
        {"text": probe, "fills": [{"token_str": fill["token_str"], "score": fill["score"]} for fill in fills]}
        for probe, fills in zip(probes, answers, strict=True)
    ]


def _with_own_mask(probe: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The probe with ``<mask>`` replaced by the tokenizer's mask token."""
    return probe.replace("<mask>", str(tokenizer.mask_token))
