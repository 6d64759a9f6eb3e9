"""Computes logits at chosen positions of texts, to fill masks and to score texts.

The head runs at these positions only, rows of similar length share a batch, and nothing as large as the vocabulary
leaves the device.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from data.batch import DocumentBorders
from train_loop.model import load_model, max_positions
from train_loop.objectives.checks import attends_by_document, gather_in_last_layer, without_dropout
from train_loop.objectives.masked_logits import MaskedLogits
from train_loop.sharing.locate import model_folder, require_hub
from train_loop.watching.columns import excerpt

_MOST_POSITIONS = 512  # in one batch: with a vocabulary of 50,000, their logits take 100 MB

Pieces = tuple[int, ...]  # the tokens of a word
Choice = tuple[float, Pieces]  # the log-probability of a word in place of a mask, and the word

_tokenizer_lock = threading.Lock()


class Query(NamedTuple):
    """Asks for the logits at some positions of a text, whose ``[L]`` ids include its special tokens."""

    input_ids: Sequence[int]
    positions: Sequence[int]


class Ask(NamedTuple):
    """Asks for the probability of one token at one position, given the other tokens."""

    input_ids: tuple[int, ...]
    position: int
    token: int


class MaskPredictor:
    """A masked language model with its tokenizer; many threads may use one at the same time."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Use a model where and as it is, unless a device or a dtype is given.

        Raises ValueError if the model has no MLM head, the tokenizer has no mask token, or the dtype is unknown.
        """
        if model.get_output_embeddings() is None:
            raise ValueError(
                f"{type(model).__name__} has no masked-language-modeling head: load it with AutoModelForMaskedLM"
            )
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no mask token: use the one the model was trained with"
            )
        if device is not None:
            model.to(device)
        self._masked_logits = MaskedLogits(model)
        # This compares two computations in full precision, so that rounding does not look like a real difference.
        if model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type):
            gather_in_last_layer(self._masked_logits)
        if dtype is not None:
            found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
            if not isinstance(found, torch.dtype) or not found.is_floating_point:
                raise ValueError(
                    f"dtype={dtype!r} is no floating-point type of torch: use float32, bfloat16 or float16"
                )
            model.to(found)
        self.model, self.tokenizer = model, tokenizer
        self.longest = max_positions(model)
        self._pads = True
        self.vocab_size = model.get_input_embeddings().num_embeddings
        self._pad = tokenizer.pad_token_id or 0  # the attention mask hides it, so any token will do

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """Load model and tokenizer from a folder or the Hub, onto the GPU if there is one."""
        model, tokenizer = load_with_tokenizer(name)
        predictor = cls(model, tokenizer, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
        if model.dtype == torch.float32:  # as in __init__; but a model of somebody else keeps its attention
            predictor._pads = not attends_by_document(predictor._masked_logits, min(64, predictor.longest))
        return predictor

    def answer_each(
        self, texts: str | Iterable[str], answer: Callable[[list[str], int | None], list[Any]], texts_at_once: int
    ) -> Any:
        """Return an answer for one text, a list for a list, and an iterator for an iterator.

        ``answer`` gets so many texts at once, and the number of the first, counted from 1; None where there is only one
        text. An iterator is read no further ahead than that.
        """
        if isinstance(texts, str):
            return answer([texts], None)[0]
        iterator = iter(texts)
        windows = iter(lambda: list(itertools.islice(iterator, texts_at_once)), [])  # ends at an empty window
        firsts = itertools.count(1, texts_at_once)
        answers = itertools.chain.from_iterable(map(answer, windows, firsts))
        return list(answers) if isinstance(texts, Sequence) else answers

    def encode(
        self,
        texts: list[str],
        *,
        first: int | None = None,  # number of the first text, for messages; None where there is only one
        truncation: bool = False,  # cut a text that is longer than the model, and keep its masks
        tokenizer_kwargs: dict[str, Any] | None = None,  # their ``padding`` is ignored: batches are padded here
    ) -> list[list[int]]:
        """Tokenize texts. Raises ValueError if one is empty, has no mask or is too long."""
        ours = {"padding": False, "return_tensors": None, "return_attention_mask": False, "verbose": False}
        rows = tokenize(self.tokenizer, texts, **{**(tokenizer_kwargs or {}), **ours})["input_ids"]
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            where = "" if first is None else f" (text {first + i})"
            if self.tokenizer.mask_token_id not in row:
                raise ValueError(self._why_no_mask(text, where))
            if len(row) > self.longest:
                rows[i] = self._cut(row, text, where, truncation=truncation)
        return rows

    def masks(self, row: Sequence[int]) -> list[int]:
        """The positions of a row's masks."""
        return [i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id]

    def _why_no_mask(self, text: str, where: str) -> str:
        mask = self.tokenizer.mask_token
        if not text.strip():
            return f"an empty text{where}: write one with {mask} where a word is to be filled in"
        if mask in text:
            return f"tokenizer_kwargs cut off the mask of {excerpt(text, 60)!r}{where}: truncation=True keeps it"
        return f"no mask token in {excerpt(text, 60)!r}{where}: write {mask} where a word is to be filled in"

    def _cut(self, row: list[int], text: str, where: str, *, truncation: bool) -> list[int]:
        """The part of a row around its masks that fits the model, between the row's special tokens."""
        if not truncation:
            raise ValueError(
                f"a text of {len(row):,} tokens is longer than the model's {self.longest:,} positions{where}: "
                f"{excerpt(text, 60)!r}; shorten it, or set truncation to cut it around its masks"
            )
        around = tokenize(self.tokenizer, "")["input_ids"]
        lead = next((i for i, (a, b) in enumerate(zip(row, around, strict=False)) if a != b), len(around))
        body = row[lead : len(row) - (len(around) - lead)]
        room = self.longest - len(around)
        masks = self.masks(body)
        if masks[-1] - masks[0] >= room:
            raise ValueError(
                f"the masks of {excerpt(text, 60)!r}{where} lie {masks[-1] - masks[0] + 1:,} tokens apart, "
                f"more than the model's {self.longest:,} positions hold: fill them one by one"
            )
        start = min(max((masks[0] + masks[-1] + 1 - room) // 2, 0), len(body) - room)
        return [*row[:lead], *body[start : start + room], *around[lead:]]

    def top_k(self, queries: Sequence[Query], k: int, batch_size: int) -> list[list[list[Choice]]]:
        """For each query and each of its positions, the K most probable tokens, the best first."""
        result: list[list[list[Choice]]] = [[] for _ in queries]
        for indices, logits_MV in self._batches(queries, batch_size):
            values_MK, tokens_MK = logits_MV.topk(min(k, self.vocab_size))
            log_probs_MK = values_MK - logits_MV.logsumexp(-1, keepdim=True)
            at_positions = zip(log_probs_MK.tolist(), tokens_MK.tolist(), strict=True)
            for i in indices:
                for log_probs, tokens in itertools.islice(at_positions, len(queries[i].positions)):
                    result[i].append([(log_probs[j], (token,)) for j, token in enumerate(tokens)])
        return result

    def ask(self, row: tuple[int, ...], position: int, end: int) -> Ask:
        """Ask for a row's token at a position, with the row masked from there up to ``end``."""
        masks = (self.tokenizer.mask_token_id,) * (end - position)
        return Ask(row[:position] + masks + row[end:], position, row[position])

    def log_probs(self, asks: Sequence[Ask], batch_size: int) -> list[float]:
        """The log-probability of each ask; logits that several asks share are computed once."""
        by_row: dict[tuple[int, ...], dict[int, list[Ask]]] = {}
        for ask in asks:
            by_row.setdefault(ask.input_ids, {}).setdefault(ask.position, []).append(ask)
        rows = list(by_row)
        found: dict[Ask, float] = {}
        for indices, logits_MV in self._batches([Query(row, list(by_row[row])) for row in rows], batch_size):
            by_logits = [of_position for i in indices for of_position in by_row[rows[i]].values()]
            answered = list(itertools.chain.from_iterable(by_logits))
            which = [m for m, of_position in enumerate(by_logits) for _ in of_position]
            values = logits_MV[which, [ask.token for ask in answered]] - logits_MV.logsumexp(-1)[which]
            found.update(zip(answered, values.tolist(), strict=True))
        return [found[ask] for ask in asks]

    def _batches(self, queries: Sequence[Query], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the indices of the queries of a batch, and the ``[M, V]`` fp32 logits at all their positions.

        The longest queries come first, so that what does not fit in memory fails at once.
        """
        order = sorted(range(len(queries)), key=lambda i: -len(queries[i].input_ids))
        while order:
            totals = itertools.accumulate(len(queries[i].positions) for i in order[:batch_size])
            count = max(1, sum(total <= _MOST_POSITIONS for total in totals))
            indices, order = order[:count], order[count:]
            yield indices, self._logits([queries[i] for i in indices])

    @torch.no_grad()
    def _logits(self, queries: Sequence[Query]) -> Tensor:
        """``[M, V]`` logits in fp32, without dropout, of one batch whose first query is the longest."""
        device = self.model.device
        rows = [torch.tensor(ids) for ids, _ in queries]
        lengths = [len(row) for row in rows]
        inputs: dict[str, Any] = {}
        if self._pads or len(set(lengths)) == 1:
            input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad)
            starts = [number * lengths[0] for number in range(len(rows))]
            is_token = torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
            if not is_token.all():  # it would cost time for nothing
                inputs["attention_mask"] = is_token.long().to(device)
        else:
            input_ids = torch.cat(rows).unsqueeze(0)
            *starts, _ = itertools.accumulate(lengths, initial=0)
            inputs["documents"], inputs["position_ids"] = DocumentBorders.of(lengths, device)
        positions = [start + i for start, query in zip(starts, queries, strict=True) for i in query.positions]
        with without_dropout(self.model):
            return self._masked_logits(input_ids.to(device), torch.tensor(positions).to(device), **inputs).float()


def load_with_tokenizer(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a trained model and its tokenizer from its folder, a run's folder or the Hub.

    Raises ValueError if there is no such model or tokenizer, or the model has no trained MLM head.
    """
    name = model_folder(name)
    require_hub(name)
    model = load_model(name, needs_all_weights=True).eval()
    try:
        return model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name!r} has no tokenizer: {' '.join(str(error).split())}") from error


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **settings: Any) -> BatchEncoding:
    """Call the tokenizer from one thread at a time, because a call changes the tokenizer's truncation state."""
    with _tokenizer_lock:
        return tokenizer(texts, **settings)
