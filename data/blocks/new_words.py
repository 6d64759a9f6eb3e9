"""The words that a tokenizer cuts into many pieces, and a tokenizer to which each of them is one token.

A new token stands for its whole word alone: within a longer word, and in any other, the pieces stay what they were.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.blocks.vocabulary import vocab_size

# Tokens fewer in a text once the word is one; its name in a vocabulary, such as "Ġword"; the ids of its pieces.
ShatteredWord = tuple[int, str, tuple[int, ...]]


def shattered_words(
    tokenizer: PreTrainedTokenizerBase, batches: Iterable[list[str]]
) -> tuple[list[ShatteredWord], Counter[int], int]:
    """The words of some texts that are several tokens, by falling gain, then name; each token's count; texts.

    Words have a letter, and are what the tokenizer cuts a text into first. ValueError if it cannot have new ones.
    """
    kind = type(tokenizer.backend_tokenizer.model if tokenizer.is_fast else tokenizer).__name__
    if kind not in ("BPE", "WordPiece") or tokenizer.backend_tokenizer.pre_tokenizer is None:
        shown = f"tokenizer {tokenizer.name_or_path!r} ({kind})"
        raise ValueError(f"{shown} cannot have new words: use one that cuts text into words, then by BPE or WordPiece")
    counts, tokens, num_texts = Counter[tuple[int, ...]](), Counter[int](), 0
    for encoding in (encoding for texts in batches if texts for encoding in tokenizer(texts, verbose=False).encodings):
        tokens.update(encoding.ids)
        num_texts += 1
        for word, run in itertools.groupby(zip(encoding.word_ids, encoding.ids, strict=True), lambda pair: pair[0]):
            pieces = tuple(token for _, token in run)
            if word is not None and len(pieces) > 1 and tokenizer.unk_token_id not in pieces:
                counts[pieces] += 1
    found = []
    for pieces, times in counts.items():
        first, *others = tokenizer.convert_ids_to_tokens(list(pieces))
        name = first + "".join(token.removeprefix("##") if kind == "WordPiece" else token for token in others)
        # Beside a symbol, a letter to a WordPiece, an added token is found though it is not the whole word.
        is_plain = kind == "BPE" or all(letter.isalpha() or letter.isdecimal() for letter in name)
        if is_plain and any(map(str.isalpha, tokenizer.decode(list(pieces)))):
            found.append((times * (len(pieces) - 1), name, pieces))
    return sorted(found, key=lambda word: (-word[0], word[1])), tokens, num_texts


def save_with_words(tokenizer: PreTrainedTokenizerBase, names: Iterable[str], folder: Path) -> None:
    """Write the tokenizer's files with new words, whose ids follow the largest one."""
    tokenizer.save_pretrained(folder)
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content, options = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    ids = {name: token for token, name in enumerate(names, vocab_size(tokenizer))}
    if content["model"]["type"] == "BPE":
        # A word that is in the vocabulary is taken whole, before any merge: no other word changes. Added tokens move
        # in too: those outside are numbered from its end when the file is read, and would get other ids.
        content["model"]["ignore_merges"] = True
        content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]} | ids
    else:  # a WordPiece takes the longest beginning that it knows, in longer words too: an added token does not
        whole = {"single_word": True, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        content["added_tokens"] += [{"id": token, "content": name, **whole} for name, token in ids.items()]
        # To it, unlike to BERT, an underscore is a letter. Spaces around it change nothing else.
        spaced = {"type": "Replace", "pattern": {"String": "_"}, "content": " _ "}
        content["normalizer"] = {"type": "Sequence", "normalizers": [*filter(None, [content["normalizer"]]), spaced]}
    # transformers' classes for one model, as RobertaTokenizer, build a BPE of their own, without ignore_merges.
    options |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": tokenizer.model_input_names}
    for path, values in zip(paths, (content, options), strict=True):
        path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
