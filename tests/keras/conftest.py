"""A tokenizer and RoBERTas whose every weight matters, written for KerasHub."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM

from data import DataConfig, open_documents, open_tokenizer

MARKS = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
# Real text: prose, code with its indentation, numbers and punctuation.
TEXTS = [text for _, text in sorted(topics.items())]


@pytest.fixture(scope="session")
def roberta_tokenizer(tmp_path_factory: pytest.TempPathFactory, cache_dir: str) -> PreTrainedTokenizerBase:
    """The project's own, which is of RoBERTa's kind."""
    path = tmp_path_factory.mktemp("topics") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = DataConfig(
        dataset=str(path), text_column="text", train_tokenizer=True, vocab_size=2000, cache_dir=cache_dir
    )
    return open_tokenizer(config, open_documents(config)[0], None)


def saved_roberta(folder: Path, tokenizer: PreTrainedTokenizerBase, **shape: int | float) -> RobertaForMaskedLM:
    """A model in a folder, all of its biases, norms and token types off from 0 and 1."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), **{"layer_norm_eps": 1e-5, "type_vocab_size": 1, **shape})
    model = RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
