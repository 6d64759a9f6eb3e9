"""Features of a frozen encoder, and what a regression reads from them."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.conftest import sentences
from tests.models import sharpened, tiny_model
from train_loop.inference.features import features, probe

TEXTS = [text[: 5 + 7 * i % 60] for i, text in enumerate(sentences(40))]


@pytest.mark.parametrize("family", ["roberta", "modernbert", "albert"])
def test_the_states_are_those_of_each_text_alone(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(family)
    mean = features(model, tokenizer, TEXTS)
    first = features(model, tokenizer, TEXTS, pooling="first")
    assert model.training  # as it was
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            states = model.eval().base_model(torch.tensor([tokenizer(text)["input_ids"]]))[0][0]
        assert np.allclose(mean[i], states.mean(0), atol=1e-5)
        assert np.allclose(first[i], states[0], atol=1e-5)
        model.train()


def test_a_text_longer_than_the_model_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("bert", max_position_embeddings=16)
    (row,) = features(model, tokenizer, [" ".join(sentences(30))])
    assert np.isfinite(row).all()


def test_a_label_that_is_in_the_text_is_read_and_a_random_one_is_not(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"{text} {'the cat' if i % 2 else 'green hill'}" for i, text in enumerate(sentences(120))]
    states = features(sharpened(tiny_model("roberta"), 2.0), tokenizer, texts)
    planted = probe(states, ["cat" if i % 2 else "hill" for i in range(120)])
    rng = np.random.default_rng(0)
    random = probe(states, rng.choice(["a", "b"], 120).tolist())
    assert planted.low > 0.8
    assert random.low < 0.6
    assert planted.low > random.high  # the intervals do not meet
    assert probe(states, ["cat" if i % 2 else "hill" for i in range(120)]) == planted  # the folds are fixed


@pytest.mark.parametrize("labels", [["a"] * 20, ["a"] * 16 + ["b"] * 4])
def test_too_few_labels_are_one_line(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="give two or more"):
        probe(np.zeros((20, 3)), labels)
