"""Load or train a tokenizer, and turn texts into flat token arrays."""

import copy
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.blocks.tokens import flagged
from data.blocks.words import require_words, word_starts
from data.config import DataConfig
from data.documents.documents import Documents

logger = logging.getLogger(__name__)

# As in RoBERTa, the mask token includes the space before it, so that "a <mask> b" is filled with " word".
_MASK_TOKEN = AddedToken("<mask>", lstrip=True, special=True)
_STREAMED_CHARACTERS = 20_000_000  # of each source: what a tokenizer is trained on when streaming
_OF_LOADING = ("is_local", "local_files_only", "model_max_length")  # options that do not change tokens
_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", _MASK_TOKEN]
_ENDS = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}


def open_tokenizer(
    config: DataConfig, documents: Sequence[Documents], model_name_or_path: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that the settings name. Raises ValueError if there is none, or it lacks a token that they need."""
    if config.train_tokenizer:
        tokenizer = _trained(config, documents)
    else:
        name = config.tokenizer_name_or_path or model_name_or_path
        if name is None:
            raise ValueError(
                "a model from scratch needs a tokenizer: give --tokenizer_name_or_path, or --train_tokenizer"
            )
        from transformers import AutoTokenizer  # imports torch

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"tokenizer {name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no mask token: use the tokenizer of a masked language model, "
            "or --train_tokenizer"
        )
    for setting, without_padding in (("last_block", "drop"), ("grouping", "concatenate")):
        if (value := getattr(config, setting)) != without_padding and tokenizer.pad_token_id is None:
            raise ValueError(
                f"{setting}={value}: tokenizer {tokenizer.name_or_path!r} has no pad token: "
                "use --grouping concatenate --last_block drop"
            )
    return tokenizer


def _trained(config: DataConfig, documents: Sequence[Documents]) -> PreTrainedTokenizerBase:
    """A tokenizer trained on some documents, or when streaming on their beginning; from the cache or trained now."""
    most = _STREAMED_CHARACTERS if config.streaming else None
    key = repr(([source.fingerprint for source in documents], config.vocab_size, most))
    path = Path(config.cache_dir).expanduser() / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        if path.exists():
            logger.warning("%s is damaged and made again (%s)", path, error)
        texts = (_beginning(source.texts(), most) for source in documents)
        backend = train_bpe(itertools.chain.from_iterable(texts), config.vocab_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            backend.save(str(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", mask_token=_MASK_TOKEN, **_ENDS
    )


def _beginning(batches: Iterable[list[str]], most: int | None) -> Iterable[list[str]]:
    """The first batches, until they have ``most`` characters; all of them if that is None."""
    num_characters = 0
    for texts in batches:
        yield texts
        num_characters += sum(map(len, texts))
        if most is not None and num_characters >= most:
            return


def train_bpe(batches: Iterable[list[str]], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Radford et al. 2019) with ``<s> text </s>``, which has no unknown characters.

    Raises ValueError if ``vocab_size`` is less than the number of bytes and special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} must be at least {smallest}: 256 bytes and the special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(batches, trainer)
    start, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    return tokenizer


def encoder(tokenizer: PreTrainedTokenizerBase, *, with_words: bool) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to their flagged tokens end to end, ``[T]`` uint32 (see `data.blocks.tokens`).

    Each text gets the tokenizer's special tokens. Nothing is truncated: long texts are cut into blocks later. Several
    threads may call the function. Raises ValueError if the starts of words are wanted and the tokenizer cannot tell.
    """
    if with_words:
        require_words(tokenizer, "whole_word")
    backend = None
    if tokenizer.is_fast:
        backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the caller's tokenizer keeps its truncation and padding
        backend.no_truncation()  # some tokenizer.json files set a truncation and a padding
        backend.no_padding()

    def encode(texts: list[str]) -> np.ndarray:
        if backend is None:
            ids = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
        else:  # not through transformers: it also builds masks and offsets, which halves the speed
            encodings = backend.encode_batch(texts) if with_words else backend.encode_batch_fast(texts)
            ids = [encoding.ids for encoding in encodings]
        lengths = list(map(len, ids))
        tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.uint32)
        starts = None
        if with_words:  # encode_batch_fast has no word ids
            word_ids = itertools.chain.from_iterable(encoding.word_ids for encoding in encodings)
            starts = word_starts(tokenizer, tokens, word_ids, lengths)
        return flagged(tokens, np.array(lengths, dtype=np.int64), starts)

    return encode


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that changes if a text could be tokenized or masked differently, not by using, saving or moving it."""
    if tokenizer.is_fast:
        # Calls change truncation and padding, and `encoder` removes them.
        content = {**json.loads(tokenizer.backend_tokenizer.to_str()), "truncation": None, "padding": None}
        content["split_special_tokens"] = tokenizer.split_special_tokens
    else:
        content = _saved(tokenizer)
    special = (tokenizer.mask_token_id, sorted(tokenizer.all_special_ids))
    return hashlib.sha256(json.dumps((content, special)).encode()).hexdigest()


def _saved(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a slow tokenizer: its class and options, and a hash of each vocabulary file."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
    options = json.loads(files.pop("tokenizer_config.json"))
    return {
        "options": {name: value for name, value in options.items() if name not in _OF_LOADING},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
