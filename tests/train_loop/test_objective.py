"""P6: the head on masked positions only has the stock model's loss and gradients."""

import pytest
import torch
import torch.nn.functional as F

from tests.models import FAMILIES, tiny_model
from train_loop import MaskedLMObjective, freeze_unused

B, L, V = 4, 24, 300


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    input_ids = torch.randint(5, V, (B, L))
    positions = torch.nonzero(torch.rand(B * L) < 0.15).squeeze(1)
    return input_ids, positions, torch.randint(5, V, (len(positions),))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_stock_model(family: str, padded: bool) -> None:
    """Against ``model(input_ids, attention_mask, labels).loss``, the mean that transformers computes itself."""
    model = tiny_model(family).eval()  # no dropout
    input_ids, positions, labels = _batch()
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

    loss = MaskedLMObjective(model)(input_ids, positions, labels, attention_mask) / len(labels)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert set(gradients) == set(expected_gradients)
    largest = max(g.abs().max() for g in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6 * float(largest), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_is_trained_gets_a_gradient(family: str) -> None:
    """DDP waits for each of them; FNet and SqueezeBERT keep a pooler that the loss does not reach."""
    objective = MaskedLMObjective(tiny_model(family))
    frozen = freeze_unused(objective)
    assert all("pooler" in name for name in frozen)
    assert bool(frozen) == (family in {"fnet", "squeezebert"})
    assert all(parameter.grad is None for parameter in objective.parameters())
    objective(*_batch()).backward()
    assert {name for name, p in objective.named_parameters() if p.grad is None} == set(frozen)


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert"])
def test_nothing_masked_gives_zero_loss_and_zero_gradients(family: str) -> None:
    model = tiny_model(family)
    nothing = torch.zeros(0, dtype=torch.long)
    loss = MaskedLMObjective(model)(_batch()[0], nothing, nothing)
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # DDP waits for every parameter
        assert not parameter.grad.any(), name


def test_the_head_runs_on_masked_positions_only() -> None:
    model = tiny_model("roberta")
    input_ids, positions, labels = _batch()
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[:-1].numel()))
    MaskedLMObjective(model)(input_ids, positions, labels)
    hook.remove()
    assert rows == [len(positions)]


def test_the_model_is_as_it_was_afterwards() -> None:
    """The gathering is there for one call: the stock forward still gives all logits."""
    model = tiny_model("bert").eval()
    input_ids, positions, _ = _batch()
    before = model(input_ids=input_ids).logits
    logits = MaskedLMObjective(model).masked_logits(input_ids, positions)
    after = model(input_ids=input_ids).logits
    assert torch.equal(before, after)
    torch.testing.assert_close(logits, before.flatten(0, 1)[positions], rtol=1e-5, atol=1e-6)


def test_a_head_that_goes_round_the_gathering_is_noticed() -> None:
    class Stubborn(torch.nn.Module):
        """A family whose logits do not come from the encoder's first output."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model("bert")
            self.base_model = self.inner.base_model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> object:
            logits = F.one_hot(input_ids, V).float()
            return type("Output", (), {"logits": logits})()

    input_ids, positions, labels = _batch()
    with pytest.raises(AssertionError, match="Stubborn: the head gave logits at 96 positions"):
        MaskedLMObjective(Stubborn())(input_ids, positions, labels)  # type: ignore[arg-type]
