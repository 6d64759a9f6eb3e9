"""Replaced-token detection: its gradient against stock models, its samples, and that no split changes them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, ElectraForPreTraining

from data import MaskedBatch
from tests.batches import as_batch
from tests.models import FAMILIES, sharpened, tiny_model
from train_loop import TrainConfig, build_optimizers, freeze_unused
from train_loop.objectives.replaced_tokens import ReplacedTokenObjective, sample

WAYS = ("gradient_disentangled", "all", "none")


def _objective(family: str, way: str = WAYS[0]) -> ReplacedTokenObjective:
    """Without dropout. Weights are larger than fresh ones, so that each token has its own probability."""
    config = tiny_model(family).config
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return ReplacedTokenObjective(sharpened(AutoModel.from_config(config)), embedding_sharing=way).train()


def _batch(num_blocks: int = 6, length: int = 16, *, padded: bool = False) -> MaskedBatch:
    torch.manual_seed(1)
    lengths = torch.randint(5, length, (num_blocks,)) if padded else torch.full((num_blocks,), length)
    mask = (torch.arange(length) < lengths[:, None]).long()
    input_ids = torch.randint(5, 300, (num_blocks, length)) * mask + (1 - mask)
    positions = torch.nonzero((torch.rand(num_blocks, length) < 0.3) & (mask > 0)).T
    flat = positions[0] * length + positions[1]
    labels = input_ids.flatten()[flat]
    input_ids.view(-1)[flat] = 4  # the mask token
    return as_batch(input_ids, flat, labels, mask if padded else None)


def _half(batch: MaskedBatch, start: int, end: int, width: int | None = None) -> MaskedBatch:
    """Some blocks of a batch, perhaps cut to a width."""
    length = batch.input_ids.shape[1]
    width = width or length
    rows, columns = batch.masked_positions // length, batch.masked_positions % length
    inside = (rows >= start) & (rows < end)
    mask = None if batch.attention_mask is None else batch.attention_mask[start:end, :width]
    return replace(
        batch,
        input_ids=batch.input_ids[start:end, :width],
        masked_positions=((rows - start) * width + columns)[inside],
        labels=batch.labels[inside],
        attention_mask=mask,
        block_ids=batch.block_ids[start:end],
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padded", [False, True])
def test_the_gradient_is_that_of_stock_heads_at_every_position(way: str, padded: bool) -> None:
    """A plain ELECTRA: a stock masked language model, and transformers' ElectraForPreTraining on its samples."""
    batch = _batch(padded=padded)
    objective = _objective("electra", way)
    if objective.difference is not None:
        torch.nn.init.normal_(objective.difference, std=0.1)
    objective.adapt(TrainConfig(), 16, document_attention=False, has_padding=padded)
    assert objective.logits.last_layer is not None  # the generator is the one that gathers
    sums = objective(batch)
    (sums[0] + 3 * sums[1]).backward()

    generator = AutoModelForMaskedLM.from_config(objective.generator.config).train()
    generator.load_state_dict(objective.generator.state_dict())
    stock = ElectraForPreTraining(objective.model.config).train()
    stock.electra.load_state_dict(objective.model.state_dict())
    heads = zip((stock.discriminator_predictions.dense, stock.discriminator_predictions.dense_prediction),
                (objective.head[0], objective.head[2]), strict=True)  # fmt: skip
    for theirs, ours in heads:
        theirs.load_state_dict(ours.state_dict())
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.masked_positions] = batch.labels
    logits = generator(batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)
    generator_loss = F.cross_entropy(logits, labels, reduction="sum")
    filled = batch.input_ids.flatten().clone()
    filled[batch.masked_positions] = sample(logits[batch.masked_positions], batch)
    replaced = (labels >= 0) & (filled != labels)
    num_tokens = batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())
    inputs = {"input_ids": filled.view_as(batch.input_ids), "attention_mask": batch.attention_mask}
    loss = num_tokens * stock(**inputs, labels=replaced.long().view_as(batch.input_ids)).loss
    (generator_loss + 3 * loss).backward()

    assert replaced.sum() > len(batch.labels) / 2
    assert list(map(int, objective.count(batch))) == [len(batch.labels), num_tokens]
    torch.testing.assert_close(sums, torch.stack([generator_loss, loss]), rtol=1e-5, atol=0)
    of_table = generator.electra.embeddings.word_embeddings.weight.grad
    of_model = stock.electra.embeddings.word_embeddings.weight.grad
    assert isinstance(of_table, Tensor) and isinstance(of_model, Tensor)
    found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    table = "embeddings.word_embeddings.weight"
    if way == "gradient_disentangled":
        expected = {"difference": of_model, f"generator.electra.{table}": of_table}
    elif way == "all":
        expected = {f"model.{table}": of_model + of_table}
    else:
        expected = {f"model.{table}": of_model, f"generator.electra.{table}": of_table}
    for name, p in stock.electra.named_parameters():
        expected |= {f"model.{name}": p.grad} if name != table else {}
    for name, p in generator.named_parameters():
        expected |= {f"generator.{name}": p.grad} if table not in name else {}
    predictions = stock.discriminator_predictions
    expected |= {f"head.0.{name}": p.grad for name, p in predictions.dense.named_parameters()}
    expected |= {f"head.2.{name}": p.grad for name, p in predictions.dense_prediction.named_parameters()}
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * float(largest), msg=name)


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_no_split_changes_the_samples_or_the_sums(family: str) -> None:
    """Of padded blocks, also in a batch that is less wide; the rest of an update follows from the sums and counts."""
    objective = _objective(family)
    batch = _batch(8, padded=True)
    width = int(batch.attention_mask.sum(1).max())  # type: ignore[union-attr]
    assert width < 16
    parts = [_half(batch, 0, 3), _half(batch, 3, 4), _half(batch, 4, 8, width)]
    whole, split = objective.eval_sums(batch), torch.stack([objective.eval_sums(part) for part in parts]).sum(0)
    torch.testing.assert_close(split[2:], whole[2:], rtol=0, atol=0)
    torch.testing.assert_close(split[:2], whole[:2], rtol=1e-5, atol=0)
    assert whole[5] > 5
    blank = objective.eval_sums(MaskedBatch.blank(torch.device("cpu")))
    assert not blank.any()


def test_samples_follow_the_softmax_and_differ_from_epoch_to_epoch() -> None:
    """In 20,000 draws of 5 tokens: four standard deviations are 1.4 percentage points at the most."""
    batch = _batch(4000, 16)
    few = torch.arange(20_000) % len(batch.labels)
    batch = replace(batch, masked_positions=batch.masked_positions[few.unique()], labels=batch.labels[few.unique()])
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    logits = probabilities.log().expand(len(batch.labels), 5)
    drawn = sample(logits, batch)
    shares = drawn.bincount(minlength=5) / len(drawn)
    assert (shares - probabilities).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5
    assert shares[4] == 0
    assert torch.equal(sample(logits, batch), drawn)
    pairs = (drawn[:-1] == drawn[1:]).float().mean()  # neighbours in a block are independent
    assert abs(pairs - probabilities.square().sum()) < 4 * (0.25 / len(drawn)) ** 0.5
    # In another epoch other tokens of the blocks are masked: those that are masked in both are drawn anew.
    other = _half(batch, 0, 4000)
    kept = torch.rand(len(other.labels)) < 0.9
    other = replace(other, masked_positions=other.masked_positions[kept], labels=other.labels[kept])
    again = sample(logits[kept], other)
    whole_blocks = (drawn[kept] == again).float().mean()
    assert whole_blocks < 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_any_family_that_fills_masks(family: str) -> None:
    """And the parameters that no term reaches are frozen, the model's own embeddings among them."""
    objective = ReplacedTokenObjective(AutoModel.from_config(tiny_model(family).config))
    frozen = freeze_unused(objective)
    own = next(n for n, p in objective.named_parameters() if p is objective.model.get_input_embeddings().weight)
    assert own in frozen
    assert not any("layer" in name or "head" in name or "difference" in name for name in frozen)
    objective(_batch(2)).sum().backward()
    assert objective.difference.grad.norm() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS)
def test_muon_has_the_matrices_between_hidden_states_of_both(way: str) -> None:
    """Neither the tables, nor their difference, nor the map to one number."""
    objective = _objective("modernbert", way)
    freeze_unused(objective)
    muon, adamw = build_optimizers(objective, TrainConfig(optimizer="muon"))
    names = {id(p): name for name, p in objective.named_parameters()}
    hidden, rest = ({names[id(p)] for group in one.param_groups for p in group["params"]} for one in (muon, adamw))
    assert {"model.layers.1.mlp.Wi.weight", "generator.model.layers.0.attn.Wo.weight", "head.0.weight"} <= hidden
    assert not any("embeddings" in name for name in hidden)
    table = "embeddings.tok_embeddings.weight"
    tables = {
        "gradient_disentangled": {"difference", f"generator.model.{table}"},
        "all": {f"model.{table}"},
        "none": {f"model.{table}", f"generator.model.{table}"},
    }
    assert tables[way] | {"head.2.weight"} <= rest
    assert {name for name in rest if "tok_embeddings" in name or name == "difference"} == tables[way]
