"""Where words begin among tokens, for whole-word and span masking.

A tokenizer's word ids say which tokens it cut from the same piece of text. They are right for English, but join too
much elsewhere: a piece is a whole sentence in a language without spaces between words, and the whole text where
SentencePiece does not split it first. So the token's own text counts too.
"""

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_METASPACE = "▁"
# Scripts without spaces between words: Han with its iteration marks, Hiragana, Katakana (also half width); not Hangul.
_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]|[\U00020000-\U0003ffff]"
)
# What the characters of a byte-level BPE's tokens (Radford et al. 2019) stand for.
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def require_words(tokenizer: PreTrainedTokenizerBase, masking: str) -> None:
    """Raise ValueError if the tokenizer cannot say where words begin."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"masking={masking} needs a fast tokenizer: {type(tokenizer).__name__} does not say where words begin; "
            "use masking=token"
        )


def word_starts(
    tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, word_ids: Iterable[float | None], lengths: Sequence[int]
) -> np.ndarray:
    """Which tokens begin a word.

    A token does if its word id differs from its predecessor's. Whatever the word ids say, so do the first token of a
    text, a token that begins with SentencePiece's space or follows one that ends with it, and each special, Chinese
    or Japanese token.

    ``tokens`` are the ``[T]`` of one or more texts of some lengths, with T word ids as in `Encoding.word_ids`: None for
    a special token. Returns ``[T]`` bool.
    """
    begins, ends = _marks(tokenizer, len(tokenizer))
    ids = np.fromiter(word_ids, dtype=np.float64, count=len(tokens))  # None becomes nan, which equals nothing
    starts = begins[tokens]
    starts[1:] |= (ids[1:] != ids[:-1]) | ends[tokens[:-1]]
    firsts = np.cumsum([0, *lengths[:-1]])
    starts[firsts[firsts < len(starts)]] = True
    return starts


@functools.lru_cache(maxsize=2)
def _marks(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of the vocabulary always begin a word, and which always end one: two ``[V]`` bool.

    ``num_tokens`` is for the cache: it changes when tokens are added to the tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    is_byte_level = "ByteLevel(" in f"{backend.pre_tokenizer}{backend.decoder}"
    prefix = getattr(backend.model, "continuing_subword_prefix", None) or ""
    vocab = tokenizer.get_vocab()
    begins = np.zeros(max(vocab.values()) + 1, dtype=bool)
    begins[tokenizer.all_special_ids] = True
    ends = begins.copy()
    for token, index in vocab.items():
        text = token.removeprefix(prefix)
        # An added token of a byte-level BPE stands for itself.
        is_bytes = is_byte_level and _BYTES.keys() >= set(text)
        raw = bytes(_BYTES[character] for character in text) if is_bytes else text.encode()
        # A token may end within a character; three bytes complete any character, and Han remains Han.
        first = (raw.lstrip() + b"\xbf\xbf\xbf").decode(errors="replace").lstrip(_METASPACE)[0]
        last = raw.decode(errors="replace")[-1:]
        begins[index] |= token.startswith(_METASPACE) or bool(_CJK.match(first))
        ends[index] |= (token.endswith(_METASPACE) and token != _METASPACE) or bool(_CJK.match(last))
    return begins, ends
