"""Attention over a key/value cache: one function, eager in PyTorch, one operator at export."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    position: Tensor,
    lengths: Tensor,
    *,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of new items to the cache and to themselves, scaled by the root of the head size.

    query `[row, time, head, head_size]`, key and value `[row, time, kv_head, head_size]`: the new items
    past_key, past_value `[row, kv_head, position, head_size]`: the first `position[row]` of each row are filled
    position, lengths int64 `[row]`: items in the cache, and real ones among the new

    Returns `[row, time, head, head_size]` and the caches with the new items in their places.
    """
    if torch.compiler.is_exporting():
        return _group_query_attention(query, key, value, past_key, past_value, position, lengths)
    time = query.shape[1]
    if time == past_key.shape[2]:
        # The whole cache is new: training, and the reference over whole sequences.
        keys, values, mask = key.transpose(1, 2), value.transpose(1, 2), None
    else:
        keys = _write(past_key, key, position, lengths)
        values = _write(past_value, value, position, lengths)
        last_seen = position[:, None] + torch.arange(time, device=query.device)
        mask = (torch.arange(keys.shape[2], device=query.device) <= last_seen[:, :, None])[:, None]
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, mask, dropout, is_causal=mask is None, enable_gqa=True
    )
    return attended.transpose(1, 2), keys, values


def _write(cache: Tensor, new: Tensor, position: Tensor, lengths: Tensor) -> Tensor:
    """The cache with the real ones of the new items in their places."""
    step = torch.arange(new.shape[1], device=new.device)
    row, time = torch.nonzero(step < lengths[:, None], as_tuple=True)
    written = cache.clone()
    written[row, :, position[row] + time] = new[row, time]
    return written


def _group_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    position: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX Runtime's operator, which appends to the cache in place where past and present are one buffer.

    Its contract: a row's `seqlens_k` is its total length less one; several rows with several new items each are
    refused, so the runtime prefills one row at a time.
    """
    rows, time, num_heads, head_size = query.shape
    total = position + lengths
    attended, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [
            query.flatten(2),
            key.flatten(2),
            value.flatten(2),
            past_key,
            past_value,
            (total - 1).clamp(min=0).to(torch.int32),
            total.max().to(torch.int32),
        ],
        attrs={"num_heads": num_heads, "kv_num_heads": key.shape[2]},
        dtypes=[query.dtype] * 3,
        shapes=[[rows, time, num_heads * head_size], list(past_key.shape), list(past_value.shape)],
        version=1,
    )
    return attended.unflatten(2, (num_heads, head_size)), present_key, present_value
