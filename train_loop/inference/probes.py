"""Probes: sentences with one ``<mask>``, filled at each evaluation, to watch a model learn."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop.inference.fill_mask import FillMask
from train_loop.model import max_positions


def check_probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]) -> None:
    """Raise ValueError, naming the probe, for one that the model could not fill at the first evaluation."""
    for probe in probes:
        row = tokenizer(_text(tokenizer, probe), verbose=False)["input_ids"]
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
    """The 3 most probable fills of each probe, as ``metrics.jsonl`` has them."""
    fills = FillMask(model, tokenizer)([_text(tokenizer, probe) for probe in probes], top_k=3)
    keys = ("token_str", "score")
    return [
        {"text": probe, "fills": [{key: fill[key] for key in keys} for fill in row]}
        for probe, row in zip(probes, fills, strict=True)
    ]


def _text(tokenizer: PreTrainedTokenizerBase, probe: str) -> str:
    """``<mask>`` stands for whatever the tokenizer's mask token is."""
    return probe.replace("<mask>", str(tokenizer.mask_token))
