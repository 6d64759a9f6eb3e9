"""Small tokenizers of the kinds that masked language models have, trained on a few sentences."""

import functools
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import sentences

TEXTS = [*sentences(50), "it's unbelievable, isn't it? (Yes!)", "The cat, the mat: 12 dogs."]
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # in the order of tiny_model's ids
BERT = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


def tokenizer_like(family: str) -> PreTrainedTokenizerBase:
    """As a model family has it: its algorithm, special tokens, and what its mask does with the space before it."""
    return _KINDS[family]()


@functools.cache
def _byte_level(special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """RoBERTa's and ModernBERT's: byte-level BPE; the mask takes the space before it along."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*special[:4], AddedToken(special[4], lstrip=True)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    return _finished(backend, trainer, special, lstrip=True)


@functools.cache
def _word_piece() -> PreTrainedTokenizerBase:
    """BERT's and DistilBERT's, uncased, which cleans up spaces when it decodes."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=[*BERT], show_progress=False)
    return _finished(backend, trainer, BERT, lstrip=False, clean_up=True)


@functools.cache
def _unigram(special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """ALBERT's and XLM-R's: SentencePiece's unigram model with its visible spaces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100,
        special_tokens=[*special[:4], AddedToken(special[4], lstrip=True)],
        unk_token=special[3],
        max_piece_length=4,
        show_progress=False,
    )
    return _finished(backend, trainer, special, lstrip=True)


def _finished(
    backend: Tokenizer, trainer: trainers.Trainer, special: tuple[str, ...], *, lstrip: bool, clean_up: bool = False
) -> PreTrainedTokenizerBase:
    backend.train_from_iterator(TEXTS, trainer)
    start, pad, end, unknown, mask = special
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 0), (end, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token=start,
        pad_token=pad,
        sep_token=end,
        unk_token=unknown,
        mask_token=AddedToken(mask, lstrip=lstrip, special=True),
        clean_up_tokenization_spaces=clean_up,
    )


def bert_of_letters(folder: Path) -> PreTrainedTokenizerBase:
    """A BERT of transformers' own class that knows the letters, some punctuation, and "the"; saved in a folder."""
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *".,:;'!?-_", "the"]
    (folder / "vocab.txt").write_text("\n".join([*BERT, *pieces]))
    return BertTokenizer.from_pretrained(folder)


_KINDS = {
    "roberta": lambda: _byte_level(ROBERTA),
    "modernbert": lambda: _byte_level(BERT),
    "bert": _word_piece,
    "distilbert": _word_piece,
    "albert": lambda: _unigram(BERT),
    "xlm-roberta": lambda: _unigram(ROBERTA),
}
