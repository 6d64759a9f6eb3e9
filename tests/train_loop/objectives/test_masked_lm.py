"""P6: the head on masked positions only has the stock model's loss and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tests.batches import as_batch
from tests.models import FAMILIES, tiny_model, without_dropout
from train_loop import MaskedLMObjective, MaskedLogits, freeze_unused, gather_in_last_layer
from train_loop.model import encoder_layers

B, L, V = 4, 24, 300
# The families that have a layer of their own at the end, whose attention ends in a linear map.
EARLY = {
    "roberta", "bert", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2", "convbert", "rembert",
    "megatron-bert", "distilbert", "modernbert", "eurobert", "mpnet",
}  # fmt: skip


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # input_ids, masked_positions, labels


def _objective(model: PreTrainedModel) -> MaskedLMObjective:
    """As a run has it: gathering as early as the model allows."""
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective.logits)
    return objective


def _batch(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    input_ids = torch.randint(5, V, (B, L))
    positions = torch.nonzero(torch.rand(B * L) < 0.15).squeeze(1)
    return input_ids, positions, torch.randint(5, V, (len(positions),))


def _one_token() -> Batch:
    input_ids, _, labels = _batch()
    return input_ids, torch.tensor([L + 3]), labels[:1]


def _one_whole_block() -> Batch:
    input_ids, _, _ = _batch()
    return input_ids, torch.arange(L, 2 * L), torch.randint(5, V, (L,))


@pytest.mark.parametrize("batch", [_batch, _one_token, _one_whole_block])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_stock_model(family: str, padded: bool, batch: Callable[[], Batch]) -> None:
    """Against ``model(input_ids, attention_mask, labels).loss``, the mean that transformers computes itself."""
    model = tiny_model(family).eval()  # no dropout
    input_ids, positions, labels = batch()
    attention_mask = None
    if padded:
        attention_mask = torch.ones(B, L, dtype=torch.long)
        attention_mask[-1, L // 2 :] = 0
        keep = positions < B * L - L // 2
        positions, labels = positions[keep], labels[keep]

    stock_labels = torch.full((B * L,), -100)
    stock_labels[positions] = labels
    expected = model(input_ids=input_ids, attention_mask=attention_mask, labels=stock_labels.view(B, L)).loss
    expected.backward()
    expected_gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    late, early = MaskedLMObjective(model), _objective(model)
    for objective in [late, early] if early.last_layer else [late]:
        model.zero_grad()
        loss = objective(as_batch(input_ids, positions, labels, attention_mask))[0] / len(labels)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        assert set(gradients) == set(expected_gradients)
        largest = float(max(g.abs().max() for g in expected_gradients.values()))
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_is_trained_gets_a_gradient(family: str) -> None:
    """DDP waits for each of them; FNet and SqueezeBERT keep a pooler that the loss does not reach."""
    objective = _objective(tiny_model(family))
    frozen = freeze_unused(objective)
    assert all("pooler" in name for name in frozen)
    assert bool(frozen) == (family in {"fnet", "squeezebert"})
    assert all(parameter.grad is None for parameter in objective.parameters())
    objective(as_batch(*_batch())).backward()
    assert {name for name, p in objective.named_parameters() if p.grad is None} == set(frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_no_buffer(family: str) -> None:
    """So processes need not exchange them: `launch.run.processes` tells DDP not to."""
    model = tiny_model(family)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _objective(model)(as_batch(*_batch())).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("family", sorted(EARLY | {"distilbert", "modernbert"}))
def test_nothing_masked_gives_zero_loss_and_zero_gradients(family: str) -> None:
    model = tiny_model(family)
    nothing = torch.zeros(0, dtype=torch.long)
    loss = _objective(model)(as_batch(_batch()[0], nothing, nothing))
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # DDP waits for every parameter
        assert not parameter.grad.any(), name


@pytest.mark.parametrize(
    ("family", "feed_forward", "head"),
    [("roberta", "intermediate", "lm_head"), ("modernbert", "mlp", "head"), ("distilbert", "ffn", "vocab_transform")],
)
def test_the_head_and_the_last_feed_forward_run_on_masked_positions_only(
    family: str, feed_forward: str, head: str
) -> None:
    model = tiny_model(family)
    input_ids, positions, labels = _batch()
    late, early = MaskedLMObjective(model), _objective(model)
    rows: list[int] = []
    blocks = [layer.get_submodule(feed_forward) for layer in encoder_layers(model)]
    for module in (*blocks, model.get_submodule(head)):
        module.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[:-1].numel()))
    late(as_batch(input_ids, positions, labels))
    early(as_batch(input_ids, positions, labels))
    M = len(positions)
    assert rows == [B * L, B * L, M, B * L, M, M]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_knows_who_may_gather_early_and_leaves_no_trace(family: str) -> None:
    objective = MaskedLMObjective(tiny_model(family))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert gather_in_last_layer(objective.logits) == (family in EARLY) == (objective.last_layer is not None)
    assert torch.equal(torch.get_rng_state(), before)
    assert objective.training
    assert objective.model.training
    assert all(parameter.grad is None for parameter in objective.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deberta"}))  # which itself fails under autocast
def test_the_check_decides_in_half_precision_as_in_full(family: str, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        assert gather_in_last_layer(MaskedLogits(tiny_model(family))) == (family in EARLY)


def test_a_model_that_does_not_compute_at_a_precision_is_one_line() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="model_type 'deberta' does not compute with attn_implementation=eager"),
    ):
        freeze_unused(MaskedLMObjective(tiny_model("deberta")))


@pytest.mark.parametrize("is_half", [False, True])
def test_the_check_sees_a_layer_that_reads_other_positions(is_half: bool) -> None:
    """A layer of BERT's modules that adds the block's mean at its end: the gathered rows alone have another."""
    model = tiny_model("bert")
    model.bert.encoder.layer[-1].output.register_forward_hook(
        lambda module, args, output: output + output.mean(1, True)
    )
    objective = MaskedLMObjective(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        assert not gather_in_last_layer(objective.logits)
    assert objective.last_layer is None


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # the name in 5.17
@pytest.mark.parametrize("family", sorted(EARLY - {"mpnet"}))  # which does not have it
def test_with_gradient_checkpointing(family: str) -> None:
    """The backward computes the layers again: what is gathered in the forward only would have another shape there."""
    gradients = []
    for checkpointing in (False, True):
        model = without_dropout(tiny_model(family))
        if checkpointing:
            model.gradient_checkpointing_enable()
        objective = _objective(model)
        assert objective.last_layer is not None
        objective(as_batch(*_batch())).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_under_autocast() -> None:
    model = tiny_model("roberta").eval()
    with torch.autocast("cpu", torch.bfloat16):
        late, early = MaskedLMObjective(model)(as_batch(*_batch())), _objective(model)(as_batch(*_batch()))
    assert early.dtype == torch.float32
    torch.testing.assert_close(early, late, rtol=1e-3, atol=0)


def test_the_model_is_as_it_was_afterwards() -> None:
    """The gathering is there for one call: the stock forward still gives all logits."""
    model = tiny_model("bert").eval()
    input_ids, positions, _ = _batch()
    before = model(input_ids=input_ids).logits
    logits = _objective(model).logits(input_ids, positions)
    after = model(input_ids=input_ids).logits
    assert torch.equal(before, after)
    torch.testing.assert_close(logits, before.flatten(0, 1)[positions], rtol=1e-5, atol=1e-6)


def test_a_head_that_goes_round_the_gathering_is_noticed() -> None:
    class Stubborn(torch.nn.Module):
        """A family whose logits do not come from the encoder's first output."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model("bert")
            self.base_model, self.config = self.inner.base_model, self.inner.config
            self.get_input_embeddings = self.inner.get_input_embeddings
            self.get_output_embeddings = self.inner.get_output_embeddings

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> object:
            logits = F.one_hot(input_ids, V).float()
            return type("Output", (), {"logits": logits})()

    input_ids, positions, labels = _batch()
    with pytest.raises(AssertionError, match="Stubborn: the head gave logits at 96 positions"):
        MaskedLMObjective(Stubborn())(as_batch(input_ids, positions, labels))  # type: ignore[arg-type]
