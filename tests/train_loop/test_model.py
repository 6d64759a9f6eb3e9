"""A model by name or from scratch, and clear errors where it does not fit."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.batches import as_batch
from tests.models import FAMILIES, tiny_model, without_dropout
from train_loop import MaskedLMObjective, ModelConfig, open_model
from train_loop.model import add_rows, load_model, max_positions

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def _open(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, **changes: int) -> torch.nn.Module:
    return open_model(config, tokenizer, **{"vocab_size": 300, "block_size": 16, "seed": 0, **changes})


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert"])
def test_from_scratch_it_takes_vocabulary_and_special_tokens_from_the_tokenizer(
    family: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = {"dim": 32, "n_heads": 4, "hidden_dim": 32} if family == "distilbert" else SMALL
    model = _open(ModelConfig(model_type=family, model_config=config), tokenizer)
    assert model.config.vocab_size == 300
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_roberta_from_scratch_has_the_published_layer_norm(tokenizer: PreTrainedTokenizerBase) -> None:
    """RoBERTa's and DistilRoBERTa's; transformers' default is another."""
    for given, expected in (({}, 1e-5), ({"layer_norm_eps": 1e-12}, 1e-12)):
        model = _open(ModelConfig(model_type="roberta", model_config={**SMALL, **given}), tokenizer)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {expected}


def test_the_seed_makes_the_weights(tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(model_type="bert", model_config=SMALL)
    one, two, other = (_open(config, tokenizer, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_model_is_opened_in_fp32(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tiny_model("roberta").to(torch.bfloat16).save_pretrained(tmp_path)
    model = _open(ModelConfig(model_name_or_path=str(tmp_path)), tokenizer)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_positions_are_those_a_block_can_use() -> None:
    assert max_positions(tiny_model("roberta")) == 64  # 66 embeddings less padding_idx + 1
    assert max_positions(tiny_model("mpnet")) == 64
    assert max_positions(tiny_model("bert")) == 512
    assert max_positions(tiny_model("distilbert")) == 512
    assert max_positions(tiny_model("modernbert")) == 8192


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
def test_the_longest_block_works_and_one_more_is_refused(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    longest = max_positions(tiny_model(family))
    model = _open(config, tokenizer, block_size=longest)
    model(input_ids=torch.full((1, longest), 7))
    with pytest.raises(ValueError, match=f"longer than the model's {longest} positions: use --block_size {longest}"):
        _open(config, tokenizer, block_size=longest + 1)


def test_from_scratch_the_error_names_the_positions_that_would_do(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"or --model_config max_position_embeddings=514"):
        _open(ModelConfig(model_type="roberta", model_config=SMALL), tokenizer, block_size=512)
    fitting = ModelConfig(model_type="roberta", model_config={**SMALL, "max_position_embeddings": 514})
    assert max_positions(_open(fitting, tokenizer, block_size=512)) == 512


def test_a_larger_vocabulary_is_refused_or_resized(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tiny_model("bert", vocab_size=290).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens and the model embeddings for 290"):
        _open(ModelConfig(model_name_or_path=str(tmp_path)), tokenizer)
    model = _open(ModelConfig(model_name_or_path=str(tmp_path), resize_token_embeddings=True), tokenizer)
    assert model(input_ids=torch.tensor([[299]])).logits.shape == (1, 1, 300)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(model_type="robberta"), "did you mean 'roberta'?"),
        (ModelConfig(model_type="gpt2"), "is no masked language model"),
        (ModelConfig(model_type="bert", model_config={"hidden_sise": 32}), "did you mean 'hidden_size'?"),
        (ModelConfig(model_type="bert", model_config={"hidden_size": 30, "num_attention_heads": 4}), "30"),
        (ModelConfig(model_name_or_path="/nowhere/at/all"), "cannot be loaded for masked language modeling"),
    ],
)
def test_a_model_that_cannot_be_is_one_clear_line(
    config: ModelConfig, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError) as caught:
        _open(config, tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_model(str(tmp_path))


def test_weights_that_start_at_random_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model("bert").base_model.save_pretrained(tmp_path)
    load_model(str(tmp_path))
    assert "cls.predictions" in caplog.text
    assert "start at random" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"model_name_or_path": "x", "model_type": "bert"}])
def test_a_model_is_named_in_one_way(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give one of model_name_or_path"):
        ModelConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_gradient_checkpointing_changes_no_gradient(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    without_dropout(tiny_model(family)).save_pretrained(tmp_path)
    ids, positions = torch.arange(5, 37).reshape(2, 16), torch.tensor([1, 5, 20])
    gradients = []
    for checkpointing in (False, True):
        config = ModelConfig(model_name_or_path=str(tmp_path), gradient_checkpointing=checkpointing)
        model = without_dropout(_open(config, tokenizer).train())  # type: ignore[arg-type]
        calls: list[int] = []
        inner = next(m for name, m in model.named_modules() if "layers." in name or "layer." in name)
        next(m for m in inner.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        MaskedLMObjective(model)(as_batch(ids, positions, ids.flatten()[positions])).backward()
        assert len(calls) == 1 + checkpointing  # computed again in the backward pass
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_an_attention_that_is_not_there_is_a_clear_error(tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(model_type="roberta", model_config=SMALL, attn_implementation="flash_attention_9")
    with pytest.raises(ValueError, match="flash_attention_9"):
        _open(config, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_new_rows_are_half_the_mean_of_all_and_half_that_of_their_pieces(family: str, tmp_path: Path) -> None:
    """The old tokens' logits stay, also of the saved model. MobileBERT's second output table is not looked at."""
    model = without_dropout(tiny_model(family, vocab_size=60)).eval()
    ids = torch.arange(4, 24).view(2, 10)
    before, old = model(input_ids=ids).logits, model.get_input_embeddings().weight.clone()
    head = model.get_output_embeddings()
    out, bias = head.weight.clone(), None if head.bias is None else head.bias.clone()
    add_rows(model, {60: (5, 6), 61: (7, 8, 9)}, {5: 8, 6: 2, 60: 4}, "mean")
    model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), needs_all_weights=True).eval()
    torch.testing.assert_close(model(input_ids=ids).logits[..., :60], before)
    assert model.config.vocab_size == model(input_ids=torch.tensor([[60, 61]])).logits.shape[-1] == 62
    for table, new in ((old, model.get_input_embeddings().weight), (out, model.get_output_embeddings().weight)):
        torch.testing.assert_close(new[60], (table.mean(0) + table[[5, 6]].mean(0)) / 2)
        torch.testing.assert_close(new[61], (table.mean(0) + table[[7, 8, 9]].mean(0)) / 2)
    if bias is not None:
        # log 8, log 2 and 58 times log 1 have the mean log 16 / 60; log 8 and log 2 have the mean log 4.
        shift = math.log(4) - (math.log(16) / 60 + math.log(4)) / 2
        expected = (bias.mean() + bias[[5, 6]].mean()) / 2 + shift
        torch.testing.assert_close(model.get_output_embeddings().bias[60], expected)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_a_larger_model_has_already_are_taken(tied: bool) -> None:
    """ModernBERT's embeddings are padded beyond its tokenizer."""
    model = tiny_model("modernbert", vocab_size=64, tie_word_embeddings=tied)
    old, out = model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()
    add_rows(model, {60: (5, 6, 7)}, {}, "weighted")
    assert model.config.vocab_size == 64
    for table, new in ((old, model.get_input_embeddings().weight), (out, model.get_output_embeddings().weight)):
        weighted = (3 * table[5] + 2 * table[6] + table[7]) / 6
        torch.testing.assert_close(new[60], (table[:60].mean(0) + weighted) / 2)
        assert torch.equal(new[:60], table[:60])
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    rows = model.get_input_embeddings().weight.clone()
    add_rows(model, {60: (5, 6)}, {}, "random")
    assert torch.equal(model.get_input_embeddings().weight, rows)
