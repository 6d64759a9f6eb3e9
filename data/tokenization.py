"""Load or train a tokenizer, and turn texts into flat token arrays."""

import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.config import DataConfig
from data.documents import Documents
from data.masking import Vocabulary
from data.words import require_words, word_starts

# As RoBERTa's: the mask token takes the space before it along, so that "a <mask> b" is filled with " word".
_MASK_TOKEN = AddedToken("<mask>", lstrip=True, special=True)
_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", _MASK_TOKEN]


def open_tokenizer(config: DataConfig, documents: Documents, model_name_or_path: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that the settings name, fit for masked language modeling.

    Raises:
        ValueError: There is none, or it has no mask token.
    """
    if config.train_tokenizer:
        tokenizer = _trained(config, documents)
    else:
        name = config.tokenizer_name_or_path or model_name_or_path
        if name is None:
            raise ValueError(
                "a model from scratch needs a tokenizer: give --tokenizer_name_or_path, or --train_tokenizer"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"tokenizer {name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    check_tokenizer(tokenizer, config)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    """Raise ValueError if the tokenizer lacks a token that the settings need."""
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no mask token: use the tokenizer of a masked language model, "
            "or --train_tokenizer"
        )
    if config.last_block == "pad" and tokenizer.pad_token_id is None:
        raise ValueError(
            f"last_block=pad: tokenizer {tokenizer.name_or_path!r} has no pad token: use --last_block drop"
        )


def _trained(config: DataConfig, documents: Documents) -> PreTrainedTokenizerBase:
    """The tokenizer trained on these documents, from the cache or trained now."""
    key = hashlib.sha256(f"{documents.fingerprint} {config.vocab_size}".encode()).hexdigest()[:32]
    path = Path(config.cache_dir) / "tokenizers" / f"{key}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            train_bpe(documents.texts(), config.vocab_size).save(str(temporary))
            temporary.rename(path)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=_MASK_TOKEN,
    )


def train_bpe(batches: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Radford et al. 2019), ``<s> text </s>``, with no unknown characters.

    Raises:
        ValueError: ``vocab_size`` does not hold the bytes and the special tokens.
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


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """All tokens of some texts, each with the tokenizer's special tokens, as one flat ``[T]`` array of int64.

    Never truncated: what is longer than the model is cut into blocks later.
    """
    if not tokenizer.is_fast:
        return _flat(
            tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False).input_ids
        )
    # Not through transformers: it builds masks and offsets that nobody reads (about half the speed).
    return _flat(encoding.ids for encoding in _backend(tokenizer).encode_batch_fast(texts))


def encode_with_words(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that `encode` gives, and which of them begin a word.

    Returns:
        ``[T]`` int64, ``[T]`` bool.

    Raises:
        ValueError: The tokenizer cannot say where words begin.
    """
    require_words(tokenizer, "whole_word")
    encodings = _backend(tokenizer).encode_batch(texts)  # encode_batch_fast keeps no word ids
    tokens = _flat(encoding.ids for encoding in encodings)
    word_ids = itertools.chain.from_iterable(encoding.word_ids for encoding in encodings)
    return tokens, word_starts(tokenizer, tokens, word_ids, [len(encoding) for encoding in encodings])


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer beneath a fast one, without the truncation and padding that some tokenizer.json files carry."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _flat(ids: Iterable[list[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64)


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """V, one more than the largest token id: ``len(tokenizer)`` is less where ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """What masking needs to know of the tokenizer."""
    is_special = np.zeros(vocab_size(tokenizer), dtype=bool)
    is_special[tokenizer.all_special_ids] = True
    return Vocabulary(mask_token_id=tokenizer.mask_token_id, is_special=is_special)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when any text could be tokenized differently."""
    if tokenizer.is_fast:
        content = tokenizer.backend_tokenizer.to_str()
    else:
        content = repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map))
    return hashlib.sha256(content.encode()).hexdigest()
