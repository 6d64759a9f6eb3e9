"""A tokenizer and RoBERTas whose every weight matters, written for KerasHub."""

import os
from pathlib import Path
from pydoc_data.topics import topics

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before TensorFlow is imported: it tells of the GPUs that it did not find

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

# Real text: prose, code with its indentation, numbers and punctuation.
TEXTS = [text for _, text in sorted(topics.items())]


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerBase:
    """As RoBERTa's, with 2,000 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls=("<s>", 0), add_prefix_space=False)
    names = {"cls_token": "<s>", "bos_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "eos_token": "</s>"}
    mask = special[-1]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token=mask, **names)


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
