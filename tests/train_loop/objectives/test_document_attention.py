"""Documents packed in one block get the logits and the gradients that each gets alone."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data import DocumentBorders, MaskedBatch
from tests.models import FAMILIES, tiny_model, without_dropout
from train_loop import (
    MaskedLMObjective,
    MaskedLogits,
    TrainConfig,
    build_optimizers,
    check_document_attention,
    gather_in_last_layer,
    train_step,
)
from train_loop.evaluate import evaluate
from train_loop.objectives.checks import attends_by_document
from train_loop.objectives.document_attention import NAME, attend
from train_loop.objectives.masked_logits import document_mask

V, PAD = 300, 1
# Two blocks of 64, of five documents; ModernBERT's window here is 4 tokens to each side. The first ends in padding.
LENGTHS = [[20, 5, 30], [41, 23]]
L = 64
# DeBERTa's embeddings multiply by the mask; ConvBERT and MobileBERT convolve; FNet mixes everything with everything.
MIXING = {"convbert", "fnet", "mobilebert"}
NO_MASK = {"deberta", "deberta-v2"}
SUPPORTED = sorted(set(FAMILIES) - MIXING - NO_MASK)


def _documents() -> list[list[torch.Tensor]]:
    torch.manual_seed(0)
    return [[torch.randint(5, V, (n,)) for n in lengths] for lengths in LENGTHS]


def _batch() -> MaskedBatch:
    """All tokens of all documents are to be predicted: a leak into any of them shows."""
    input_ids = torch.full((len(LENGTHS), L), PAD)
    position_ids = torch.zeros_like(input_ids)
    attention_mask = torch.zeros_like(input_ids)
    for i, documents in enumerate(_documents()):
        tokens = torch.cat(documents)
        input_ids[i, : len(tokens)] = tokens
        position_ids[i, : len(tokens)] = torch.cat([torch.arange(len(d)) for d in documents])
        attention_mask[i, : len(tokens)] = 1
    masked_positions = attention_mask.flatten().nonzero().squeeze(1)
    return MaskedBatch(
        input_ids=input_ids,
        masked_positions=masked_positions,
        labels=(input_ids.flatten()[masked_positions] + 1) % V,
        attention_mask=attention_mask,
        block_ids=torch.arange(len(LENGTHS)),
        position_ids=position_ids,
    )


def _inputs(batch: MaskedBatch) -> dict[str, Any]:
    names = ("input_ids", "masked_positions", "labels", "attention_mask", "position_ids")
    return {name: getattr(batch, name) for name in names}


def _alone(model: PreTrainedModel) -> torch.Tensor:
    """``[M, V]``: the logits of the stock model for one document at a time, with no mask or positions of ours."""
    return torch.cat([model(input_ids=d[None]).logits[0] for documents in _documents() for d in documents])


def _gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _assert_equal(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(gradients) == set(expected)
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_the_mask_worked_by_hand() -> None:
    """Documents of two tokens and of one, then two of padding, each of which sees itself alone."""
    mask = document_mask(torch.tensor([[0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]))
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert mask.shape == (2, 1, 5, 5)
    assert mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], torch.tensor(expected, dtype=torch.bool))
    assert mask[1].all()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_logits_and_gradients_are_those_of_each_document_alone(family: str, eager: bool) -> None:
    """With the attention that the library chooses, sdpa where the family has it, and with the eager one."""
    model = tiny_model(family).eval()  # no dropout
    if eager:
        model.set_attn_implementation("eager")
    objective, batch = MaskedLMObjective(model), _batch()
    gather_in_last_layer(objective.logits)
    inputs = _inputs(batch)

    expected = _alone(model)
    expected_loss = F.cross_entropy(expected, batch.labels, reduction="sum")
    expected_gradients = _gradients(model, expected_loss)
    loss = objective(batch)[0]
    gradients = _gradients(model, loss)
    del inputs["labels"]
    logits = objective.logits(**inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    _assert_equal(gradients, expected_gradients)

    as_one_document = objective.logits(**{**inputs, "position_ids": None})
    assert (as_one_document - expected).abs().max() > 1e-4  # or the comparison above would show nothing


def _side_by_side() -> MaskedBatch:
    """The documents of `_batch` in one row, in their order: nothing needs them sorted."""
    documents = [document for of_block in _documents() for document in of_block]
    tokens, lengths = torch.cat(documents), tuple(map(len, documents))
    return MaskedBatch(
        input_ids=tokens[None],
        masked_positions=torch.arange(len(tokens)),
        labels=(tokens + 1) % V,
        attention_mask=None,
        block_ids=torch.arange(len(LENGTHS)),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        documents=DocumentBorders(lengths, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)),
    )


BY_DOCUMENT = ("albert", "bert", "camembert", "distilbert", "electra", "eurobert", "modernbert", "roberta")
BY_DOCUMENT += ("xlm-roberta", "data2vec-text", "ernie", "nomic_bert")


@pytest.mark.parametrize(
    ("family", "checkpointing"), [*((f, False) for f in BY_DOCUMENT), ("roberta", True), ("modernbert", True)]
)
def test_side_by_side_logits_and_gradients_are_those_of_each_document_alone(family: str, checkpointing: bool) -> None:
    model = without_dropout(tiny_model(family))
    batch = _side_by_side()
    expected = _alone(model)
    expected_gradients = _gradients(model, F.cross_entropy(expected, batch.labels, reduction="sum"))
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective.logits)
    assert attends_by_document(objective.logits, L)
    gradients = _gradients(model, objective(batch))
    logits = objective._logits(batch)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-6)
    _assert_equal(gradients, expected_gradients)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(BY_DOCUMENT)))
def test_a_family_that_cannot_attend_by_document_is_left_as_it_was_and_named(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(family)
    before = model.config._attn_implementation
    objective = MaskedLMObjective(model)
    objective.adapt(TrainConfig(), L, document_attention=False, has_padding=True)
    assert not objective.takes_documents
    assert model.config._attn_implementation == before
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("train_loop")]
    assert line == f"texts are padded or masked: '{family}' by {before} does not take them side by side"


def _leaking(*args: Any, documents: DocumentBorders | None = None, **others: Any) -> Any:
    return attend(*args, **others)  # all of them are one document


@pytest.mark.parametrize("family", BY_DOCUMENT)
def test_the_trial_sees_attention_that_leaks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = MaskedLogits(tiny_model(family))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, _leaking)
    assert not attends_by_document(logits, L)


@pytest.mark.parametrize("reach", [1, 3, 8])
@pytest.mark.parametrize("length", [4, 9, 16, 17, 40])
def test_windows_are_those_of_a_mask(reach: int, length: int) -> None:
    torch.manual_seed(0)
    number, num_heads, width = 3, 4, 5
    query = torch.randn(1, num_heads, number * length, width, requires_grad=True)
    key, value = (torch.randn(1, 2, number * length, width, requires_grad=True) for _ in range(2))  # fewer heads
    borders = torch.arange(0, number * length + 1, length, dtype=torch.int32)
    documents = DocumentBorders((length,) * number, borders)
    attended, _ = attend(torch.nn.Identity(), query, key, value, None, sliding_window=reach + 1, documents=documents)
    index = torch.arange(number * length)
    mask = ((index[:, None] - index).abs() <= reach) & (index[:, None] // length == index // length)
    expected = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(attended, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    inputs = (query, key, value)
    for one, other in zip(
        *(torch.autograd.grad((a * weights).sum(), inputs) for a in (attended, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most elements that a tensor had within it."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        self.most = max(self.most, *(t.numel() for t in tensors), 0)
        return out


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_no_tensor_is_as_large_as_a_row_by_a_row(family: str) -> None:
    """2,048 tokens in documents of up to 512: everything stays linear but the attention of one document."""
    overrides = {"roberta": {"max_position_embeddings": 514}, "modernbert": {}}[family]
    model = without_dropout(tiny_model(family, **overrides))
    logits = MaskedLogits(model)
    assert attends_by_document(logits, 64)
    lengths = (16,) * 64 + (512,) * 2
    tokens = torch.randint(5, V, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = DocumentBorders(lengths, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32))
    with _Largest() as largest:
        logits(tokens, torch.arange(0, 2048, 8), position_ids=positions, documents=documents).sum().backward()
    assert largest.most < 2048 * 2048 / 4, largest.most


def test_padding_is_nothing_to_the_documents() -> None:
    model = tiny_model("roberta").eval()
    batch = _batch()
    objective = MaskedLMObjective(model)
    gradients = _gradients(model, objective(batch))
    batch = replace(batch, input_ids=torch.where(batch.attention_mask == 1, batch.input_ids, 77))
    _assert_equal(_gradients(model, objective(batch)), gradients)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "mpnet"])
def test_under_autocast(family: str) -> None:
    """Scores in half precision take the mask too: sdpa booleans, a mask for each kind of layer, an addition."""
    model = tiny_model(family).eval()
    batch = _batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = MaskedLMObjective(model)(batch)[0]
        expected = F.cross_entropy(_alone(model).float(), batch.labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert all(torch.isfinite(g).all() for g in _gradients(model, loss).values())


def test_the_step_and_the_evaluation_know_of_documents() -> None:
    batch = _batch().to(torch.device("cpu"))
    model = without_dropout(tiny_model("bert"))
    expected = F.cross_entropy(_alone(model), batch.labels).item()
    accelerator = Accelerator()
    objective = MaskedLMObjective(model)
    as_one_document = replace(batch, position_ids=None)
    assert evaluate(accelerator, objective, [as_one_document]).eval_loss != pytest.approx(expected, rel=1e-5)
    assert evaluate(accelerator, objective, [batch]).eval_loss == pytest.approx(expected, rel=1e-6)
    optimizers = [accelerator.prepare(optimizer) for optimizer in build_optimizers(model, TrainConfig())]
    metrics = train_step(
        accelerator, objective, optimizers, [batch], step=0, lr_factor=1.0, max_grad_norm=0.0, seed=0
    )  # fmt: skip
    assert metrics.loss_sums.sum().item() / batch.num_masked == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block_size", [2, 3, L])
@pytest.mark.parametrize("family", SUPPORTED)
def test_the_check_passes_and_leaves_no_trace(family: str, block_size: int) -> None:
    logits = MaskedLogits(tiny_model(family))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_document_attention(logits, block_size)
    assert torch.equal(torch.get_rng_state(), before)
    assert logits.model.training
    assert all(parameter.grad is None for parameter in logits.model.parameters())


@pytest.mark.parametrize("block_size", [2, 16, L])
@pytest.mark.parametrize("family", sorted(MIXING | NO_MASK))
def test_the_check_refuses(family: str, block_size: int) -> None:
    logits = MaskedLogits(tiny_model(family))
    what = "mixes the documents of a block" if family in MIXING else "takes no mask of documents"
    with pytest.raises(ValueError, match=f"^document_attention: model_type '{family}' {what}: use .*$") as caught:
        check_document_attention(logits, block_size)
    assert "\n" not in str(caught.value)
    assert "--document_attention false" in str(caught.value)
    assert logits.model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted({*SUPPORTED, *MIXING, "deberta-v2"}))  # deberta itself fails under autocast
def test_the_check_decides_in_half_precision_as_in_full(family: str, dtype: torch.dtype) -> None:
    for block_size in (2, 16, L):
        with torch.autocast("cpu", dtype):
            if family in SUPPORTED:
                check_document_attention(MaskedLogits(tiny_model(family)), block_size)
            else:
                with pytest.raises(ValueError, match="mixes the documents" if family in MIXING else "takes no mask"):
                    check_document_attention(MaskedLogits(tiny_model(family)), block_size)


def _everything(position_ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(document_mask(position_ids))


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_the_check_sees_a_wrong_mask(family: str, is_half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_loop.objectives.masked_logits.document_mask", _everything)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=is_half),
        pytest.raises(ValueError, match="mixes the documents"),
    ):
        check_document_attention(MaskedLogits(tiny_model(family)), L)


@pytest.mark.parametrize("family", sorted(set(SUPPORTED) - {"eurobert", "modernbert"}))  # these know distances alone
def test_the_check_sees_wrong_positions(family: str) -> None:
    logits = MaskedLogits(tiny_model(family))
    logits.first_position += 1
    with pytest.raises(ValueError, match="mixes the documents"):
        check_document_attention(logits, L // 2)


def test_the_check_sees_that_windows_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedLogits, "_inside_documents", lambda self, position_ids: document_mask(position_ids))
    with pytest.raises(ValueError, match="mixes the documents"):
        check_document_attention(MaskedLogits(tiny_model("modernbert")), L)
