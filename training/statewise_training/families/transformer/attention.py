"""Attention over a key/value cache: one function, eager in PyTorch; at export, one of three lowerings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from statewise_training.families.shared.lowering import current_lowering


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
    """Causal attention of new items to the cache and themselves, scaled by 1 / sqrt(head size).

    query `[row, time, head, head_size]`, key and value `[row, time, kv_head, head_size]`: the new items
    past_key, past_value `[row, kv_head, position, head_size]`: `position[row]` of them are filled
    position, lengths int64 `[row]`: items in the cache, and real ones among the new

    Returns `[row, time, head, head_size]` and the caches with the new items written.
    """
    if torch.compiler.is_exporting():
        if current_lowering() == "standard":
            return _standard_attention(query, key, value, past_key, past_value, position)
        if current_lowering() == "plain":
            return weighted_values(causal_weights(query, key), value), past_key, past_value
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


def causal_weights(query: Tensor, key: Tensor) -> Tensor:
    """Causal attention weights of whole sequences: each item sees itself and all earlier ones."""
    return attention_weights(query, key, causal_mask(query.shape[1], query.device))


def causal_mask(num_items: int, device: torch.device) -> Tensor:
    """Mask of the keys that each query sees, bool `[query, key]`; only padding sees padding on the right."""
    time = torch.arange(num_items, device=device)
    return time <= time[:, None]


def attention_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """Attention weights, `[row, head, query, key]`; each query's sum to 1.

    query `[row, time, head, head_size]`, key `[row, time, kv_head, head_size]`; visible bool, for every query at least
    one key, broadcast to the shape of the weights.
    """
    scores = query.transpose(1, 2) @ _each_head(key, query.shape[2]).transpose(2, 3)
    return (scores / math.sqrt(query.shape[3])).masked_fill(~visible, -torch.inf).softmax(dim=3)


def weighted_values(weights: Tensor, value: Tensor) -> Tensor:
    """Weighted sums of values `[row, time, kv_head, head_size]`, as `[row, time, head, head_size]`."""
    return (weights @ _each_head(value, weights.shape[1])).transpose(1, 2)


def _each_head(shared: Tensor, num_heads: int) -> Tensor:
    """Repeat keys or values for every query head of their group, `[row, head, time, head_size]`."""
    return shared.transpose(1, 2).repeat_interleave(num_heads // shared.shape[2], dim=1)


def _write(cache: Tensor, new: Tensor, position: Tensor, lengths: Tensor) -> Tensor:
    """Write the real new items into the cache at their positions."""
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
    """Emit ONNX Runtime's GroupQueryAttention; it appends in place where past and present are one buffer.

    Its contract: a row's `seqlens_k` is its total length less one; several rows with several new items each are
    refused, so the runtime prefills one row at a time. The longest length is read on the host and only bounds the
    work: the cache size, a shape, serves, while the true maximum would need a copy from the device.
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
            torch.full((), past_key.shape[2], dtype=torch.int32),
        ],
        attrs={"num_heads": num_heads, "kv_num_heads": key.shape[2]},
        dtypes=[query.dtype] * 3,
        shapes=[[rows, time, num_heads * head_size], list(past_key.shape), list(past_value.shape)],
        version=1,
    )
    return attended.unflatten(2, (num_heads, head_size)), present_key, present_value


def _standard_attention(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Emit ONNX's own operators, which ONNX Runtime also has in float32 on CUDA; TensorScatter writes in place.

    Their contract: new items are padded on the right, and the padding is written too, so a row needs room for
    `position + time` items; `nonpad_kv_seqlen` counts it. ONNX Runtime checks neither.
    """
    time = query.shape[1]
    # Not `position + time`: adding a size, known on the host, to a tensor on the device inserts a copy
    # between them, and a CUDA graph with copies cannot be captured.
    ends = (position[:, None] + torch.arange(1, time + 1))[:, -1]
    present = [_scatter(past, new, position) for past, new in ((past_key, key), (past_value, value))]
    attended: Tensor = torch.onnx.ops.symbolic(
        "Attention",
        [query.transpose(1, 2), *present, None, None, None, ends],
        attrs={"is_causal": 1},
        dtype=query.dtype,
        shape=[query.shape[0], query.shape[2], time, query.shape[3]],
    )
    return attended.transpose(1, 2), present[0], present[1]


def _scatter(past: Tensor, new: Tensor, position: Tensor) -> Tensor:
    written: Tensor = torch.onnx.ops.symbolic(
        "TensorScatter",
        [past, new.transpose(1, 2), position],
        attrs={"axis": 2, "mode": "linear"},
        dtype=past.dtype,
        shape=list(past.shape),
    )
    return written
