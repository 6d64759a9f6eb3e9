"""Attention within documents that stand side by side in one row: without padding, and without a mask of T x T.

`attend` is registered with transformers, whose models hand it the ``documents`` that their forward is given. Documents
of one length are computed together; on a GPU in half precision and without dropout, which it does not have, torch's
`varlen_attn` computes all at once. Local layers compute no more than their windows. Without documents it is sdpa.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.batch import DocumentBorders

NAME = "documents"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # other lengths in each batch would be other graphs
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,  # a token attends to those nearer than this; None: to its whole document
    documents: DocumentBorders | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``[1, T, H, D]`` of query, key and value ``[1, H, T, D]``; keys and values may have fewer heads."""
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    query, key, value = (heads_HTD[0].transpose(0, 1) for heads_HTD in (query, key, value))
    if query.is_cuda and query.dtype != torch.float32 and not dropout:
        options["window_size"] = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
        borders, longest = documents.borders, max(documents.lengths)
        attended_THD: Any = varlen_attn(query, key, value, borders, borders, longest, longest, **options)
        return attended_THD.unsqueeze(0), None
    options["dropout_p"] = dropout
    runs = [(len(list(run)), length) for length, run in itertools.groupby(documents.lengths)]
    sizes = [number * length for number, length in runs]
    splits = (tensor_THD.split_with_sizes(sizes) for tensor_THD in (query, key, value))
    parts = []
    for (number, length), *parts_THD in zip(runs, *splits, strict=True):
        heads = [part.view(number, length, *part.shape[1:]).transpose(1, 2) for part in parts_THD]
        if sliding_window is not None and length > 3 * sliding_window:  # where a mask of [L, L] costs more
            attended = _in_windows(heads, sliding_window - 1, options)
        else:
            near_LL = None
            if sliding_window is not None and length > sliding_window:
                at = torch.arange(length, device=query.device)
                near_LL = (at[:, None] - at).abs() < sliding_window
            attended = F.scaled_dot_product_attention(*heads, **options | {"attn_mask": near_LL})
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).unsqueeze(0), None


def _in_windows(heads: list[Tensor], reach: int, options: dict[str, Any]) -> Tensor:
    """Attention of ``[N, H, L, D]`` query, key and value to at most ``reach`` positions away.

    The queries are cut into C pieces of that length. Each sees its own keys, and a piece to each side.
    """
    number, _, length, _ = heads[0].shape
    more = -length % reach
    query, key, value = (F.pad(tensor.transpose(1, 2), (0, 0, 0, 0, 0, more)) for tensor in heads)  # [N, L, H, D]
    queries = query.reshape(-1, reach, *query.shape[2:]).transpose(1, 2)  # [NC, H, reach, D]
    padded = (F.pad(tensor, (0, 0, 0, 0, reach, reach)) for tensor in (key, value))
    keys, values = (tensor.unfold(1, 3 * reach, reach).flatten(0, 1).transpose(-1, -2) for tensor in padded)
    at = torch.arange(length + more, device=query.device).view(-1, reach, 1)
    other = at[:, :1] - reach + torch.arange(3 * reach, device=query.device)
    mask = ((at - other).abs() <= reach) & (other >= 0) & (other < length)
    mask = mask.repeat(number, 1, 1).unsqueeze(1)
    attended = F.scaled_dot_product_attention(queries, keys, values, mask, **options)
    return attended.transpose(1, 2).reshape(number, -1, *query.shape[2:])[:, :length].transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
