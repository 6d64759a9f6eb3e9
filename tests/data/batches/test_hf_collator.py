"""The drop-in collator: batches as the stock one's, masks that differ where its do not."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import (
    CanineTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from data import MaskedLMCollator
from data.batches.masking import MASKINGS
from tests.conftest import sentences
from tests.models import tiny_model

RAGGED = st.lists(st.lists(st.integers(5, 299), min_size=1, max_size=20), min_size=1, max_size=6)
KINDS = {
    "bare lists": lambda ids: ids,
    "bare numpy": np.array,
    "bare torch": torch.tensor,
    "lists": lambda ids: {"input_ids": ids},
    "numpy": lambda ids: {"input_ids": np.array(ids)},
    "torch": lambda ids: {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int64)},
    "all keys": lambda ids: {
        "input_ids": ids,
        "token_type_ids": [1] * len(ids),
        "attention_mask": [1] * len(ids),
        "special_tokens_mask": [1] + [0] * (len(ids) - 1),
    },
    "offsets": lambda ids: {"input_ids": ids, "offset_mapping": [(0, 1)] * len(ids)},
}


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@given(rows=RAGGED, multiple=st.sampled_from([None, 8]), as_argument=st.booleans())
def test_batches_are_those_of_the_stock_collator(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    side: str,
    return_tensors: str,
    rows: list[list[int]],
    multiple: int | None,
    as_argument: bool,
) -> None:
    """Types, keys in their order, shapes and dtypes; all values at a rate of 0; and the input is left as it was."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.padding_side = side
    features = [KINDS[kind](ids) for ids in rows]
    if kind == "offsets":  # which nothing pads
        features = features[:1]
        multiple = None
    settings = {"mlm_probability": 0.0, "pad_to_multiple_of": multiple}
    now, later = ({}, {"return_tensors": return_tensors})
    if not as_argument:
        now, later = later, now
    # The stock one makes no arrays of ragged bare tensors.
    stock_features = rows if (kind, return_tensors) == ("bare torch", "np") else copy.deepcopy(features)
    theirs = DataCollatorForLanguageModeling(tokenizer, **settings, **now)(stock_features, **later)
    before = copy.deepcopy(features)
    ours = MaskedLMCollator(tokenizer, **settings, **now)(features, **later)
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert type(ours[key]) is type(value)
        assert ours[key].dtype == value.dtype
        assert np.array_equal(ours[key], value), key
    assert str(features) == str(before)


def features_of(tokenizer: PreTrainedTokenizerBase, count: int, length: int = 12) -> list[dict[str, Any]]:
    batch = tokenizer(sentences(count, length), return_special_tokens_mask=True)
    return [
        {key: batch[key][i] for key in ("input_ids", "attention_mask", "special_tokens_mask")}
        | {"word_ids": batch.word_ids(i)}
        for i in range(count)
    ]


@pytest.mark.parametrize("with_mask", [True, False], ids=["special_tokens_mask", "by id"])
@pytest.mark.parametrize("masking", [name for name in MASKINGS if name != "diffusion"])
def test_what_is_masked(tokenizer: PreTrainedTokenizerBase, masking: str, with_mask: bool) -> None:
    """The rate within 5 standard errors over rows, of ragged lengths; the mask token within 5 points of 80 %; no
    special token chosen or drawn; labels are the tokens that were there."""
    features = features_of(tokenizer, 300) + features_of(tokenizer, 300, length=5)
    if not with_mask:
        for feature in features:
            del feature["special_tokens_mask"]
    batch = MaskedLMCollator(tokenizer, mlm_probability=0.2, masking=masking, seed=0)(features)
    seen, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    ids = tokenizer.pad([{"input_ids": f["input_ids"]} for f in features], return_tensors="np")["input_ids"]
    chosen = labels != -100
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(seen[~chosen], ids[~chosen])
    special = np.isin(ids, tokenizer.all_special_ids)
    assert not (special & chosen).any()
    masked = chosen & (seen == tokenizer.mask_token_id)
    assert not (np.isin(seen, tokenizer.all_special_ids) & chosen & ~masked).any()
    assert abs(masked.sum() / chosen.sum() - 0.8) < 0.05
    if masking == "fixed_count":
        assert np.array_equal(chosen.sum(1), np.maximum(1, np.rint(0.2 * (~special).sum(1))))
    else:
        excess = chosen.sum(1) - 0.2 * (~special).sum(1)
        assert abs(excess.mean()) < 5 * excess.std() / np.sqrt(len(features))


@pytest.mark.parametrize("with_mask", [True, False], ids=["special_tokens_mask", "by id"])
def test_fixed_count_is_the_same_however_much_padding_the_features_have(
    tokenizer: PreTrainedTokenizerBase, with_mask: bool
) -> None:
    def labels(**padding: Any) -> np.ndarray:
        texts = tokenizer(sentences(8), return_special_tokens_mask=with_mask, **padding)
        features = [{key: values[i] for key, values in texts.items()} for i in range(8)]
        collator = MaskedLMCollator(tokenizer, masking="fixed_count", mlm_probability=0.3, seed=0)
        return np.pad(collator(features, return_tensors="np")["labels"], ((0, 0), (0, 200)), constant_values=-100)

    assert np.array_equal(labels()[:, :200], labels(padding="max_length", max_length=200)[:, :200])


def test_a_second_positional_argument_is_mlm_as_in_the_stock_collator(tokenizer: PreTrainedTokenizerBase) -> None:
    features = features_of(tokenizer, 8)
    one = MaskedLMCollator(tokenizer, True, mlm_probability=0.15, seed=0)(features)
    two = MaskedLMCollator(tokenizer, mlm=True, seed=0)(features)
    assert torch.equal(one["labels"], two["labels"])
    for mlm in (False, 0.15, None):
        with pytest.raises(ValueError, match=f"mlm={mlm} must be True: .* by name"):
            MaskedLMCollator(tokenizer, mlm)
    with pytest.raises(TypeError, match="positional"):
        MaskedLMCollator(tokenizer, True, 0.15)


@pytest.mark.parametrize("kind", ["bare lists", "bare numpy", "bare torch", "lists", "all keys"])
def test_without_a_padding_token_rows_of_one_length_are_fine(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    rows = [[5, 6, 7, 8], [9, 10, 11, 12]]
    for multiple in (None, 4):
        collator = MaskedLMCollator(without, mlm_probability=0.0, pad_to_multiple_of=multiple)
        assert collator([KINDS[kind](row) for row in rows])["input_ids"].tolist() == rows
    for bad, of in ((rows, 8), ([[5], *rows], None)):
        with pytest.raises(ValueError, match="padding token"):
            MaskedLMCollator(without, pad_to_multiple_of=of)([KINDS[kind](row) for row in bad])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_words_are_chosen_whole_or_not_at_all(tokenizer: PreTrainedTokenizerBase, masking: str, side: str) -> None:
    tokenizer = copy.copy(tokenizer)
    tokenizer.padding_side = side
    features = features_of(tokenizer, 20) + features_of(tokenizer, 20, length=5)
    collator = MaskedLMCollator(tokenizer, mlm_probability=0.3, masking=masking, seed=0)
    labels = collator(features, return_tensors="np")["labels"]
    num_long = 0
    for row, feature in zip(labels, features, strict=True):
        length = len(feature["input_ids"])
        chosen = (row[:length] if side == "right" else row[-length:]) != -100
        words = np.array([-1 if word is None else word for word in feature["word_ids"]])
        for word in set(words.tolist()) - {-1}:
            assert len(set(chosen[words == word].tolist())) == 1
            num_long += (words == word).sum() > 1
    assert num_long > 20


class Rows(torch.utils.data.Dataset):
    def __init__(self, features: list[dict[str, Any]]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]


def epochs(tokenizer: PreTrainedTokenizerBase, num_workers: int, *, persistent: bool = False) -> list[torch.Tensor]:
    """The labels of two epochs of three batches of the same rows."""
    loader = DataLoader(
        Rows(features_of(tokenizer, 1) * 12),
        batch_size=4,
        num_workers=num_workers,
        persistent_workers=persistent,
        collate_fn=MaskedLMCollator(tokenizer, mlm_probability=0.5, seed=7),
    )
    return [batch["labels"] for _ in range(2) for batch in loader]


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_seed_gives_each_batch_of_each_epoch_its_masks_and_the_same_again(
    tokenizer: PreTrainedTokenizerBase, num_workers: int, persistent: bool
) -> None:
    torch.manual_seed(3)
    first = epochs(tokenizer, num_workers, persistent=persistent)
    rows = torch.cat(first)
    assert len(rows.unique(dim=0)) == len(rows) == 24
    torch.manual_seed(3)
    assert all(
        torch.equal(a, b) for a, b in zip(first, epochs(tokenizer, num_workers, persistent=persistent), strict=True)
    )


def test_without_a_seed_two_collators_differ(tokenizer: PreTrainedTokenizerBase) -> None:
    features = features_of(tokenizer, 8)
    one, two = (MaskedLMCollator(tokenizer)(features)["labels"] for _ in range(2))
    assert not torch.equal(one, two)


def _on_rank(rank: int, folder: str, tokenizer: PreTrainedTokenizerBase, features: list[dict[str, Any]]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    collator = MaskedLMCollator(tokenizer, seed=7)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(collator))
    np.save(Path(folder, f"{rank}.npy"), collator(features, return_tensors="np")["labels"])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_differ(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """In two processes over gloo; and where one of them pickles its collator for a worker, which is in no group."""
    features = features_of(tokenizer, 8)
    torch.multiprocessing.spawn(_on_rank, (str(tmp_path), tokenizer, features), nprocs=2)
    zero, one = (np.load(tmp_path / f"{rank}.npy") for rank in (0, 1))
    assert not np.array_equal(zero, one)
    for rank, labels in enumerate((zero, one)):
        collator = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert np.array_equal(collator(features)["labels"], labels)


@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_trainer_trains_with_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, masking: str) -> None:
    """With and without its removal of columns that the model does not take."""
    rows = features_of(tokenizer, 16) + features_of(tokenizer, 16, length=5)
    if masking == "token":
        for i, row in enumerate(rows):
            row["text"] = f"row {i}"
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        remove_unused_columns=masking == "token",
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=tiny_model("bert"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=MaskedLMCollator(tokenizer, masking=masking, seed=0),
    )
    assert 0 < trainer.train().training_loss < 20
    assert trainer.state.global_step == 2
    assert 0 < trainer.evaluate()["eval_loss"] < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masking": "words"}, "masking='words' must be one of: token, whole_word, span, fixed_count"),
        ({"masking": "diffusion"}, "masking=diffusion gives weights, which Trainer does not read"),
        ({"mlm_probability": 1.5}, "mlm_probability=1.5 must be between 0 and 1"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "add up to more than 1"),
        ({"mask_replace_prob": -0.1}, "neither may be negative"),
        ({"return_tensors": "tf"}, "return_tensors='tf' must be 'pt' or 'np'"),
        ({"masking": "span"}, "masking=span needs in each feature word_ids.*remove_unused_columns=False"),
    ],
)
def test_what_cannot_work_is_refused(
    tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLMCollator(tokenizer, **settings)([[5, 6, 7]])


def test_a_tokenizer_that_cannot_do_it_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    slow = CanineTokenizer()
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        MaskedLMCollator(slow, masking="whole_word")
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        MaskedLMCollator(without)
