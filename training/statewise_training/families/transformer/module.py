"""The Transformer decoder's step function."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statewise_training.families.shared.mixture import output_layer
from statewise_training.families.transformer.attention import causal_mask
from statewise_training.families.transformer.caches import Caches, MixedCaches, RowCaches, ShownRows
from statewise_training.families.transformer.positions import rotary_table, rotate, sinusoidal_table

if TYPE_CHECKING:
    from statewise_training.families.transformer.config import TransformerConfig, TransformerLayersConfig

State = tuple[Tensor, ...]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class TransformerTrunk(nn.Module):
    """Embedding, positions and layers: from items to hidden vectors."""

    def __init__(self, config: TransformerLayersConfig, layer: type[Layer]) -> None:
        super().__init__()
        width = config.hidden_size
        self.max_positions = config.max_positions
        if config.vocabulary_size is not None:
            self.embedding: nn.Embedding | nn.Linear = nn.Embedding(config.vocabulary_size, width)
        else:
            self.embedding = nn.Linear(config.features or 0, width, bias=config.bias)
        self.position_embedding = nn.Embedding(config.max_positions, width) if config.positions == "learned" else None
        if config.positions == "sinusoidal":
            self.register_buffer("sinusoids", sinusoidal_table(config.max_positions, width), persistent=False)
        if config.positions == "rotary":
            table = rotary_table(config.max_positions, config.head_width, config.rotary_base, config.rotary_divisors)
            self.register_buffer("rotations", table, persistent=False)
        self.positions = config.positions
        self.embedding_scale = math.sqrt(width) if config.scaled_embeddings else None
        self.embedding_norm = norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.final_norm = norm(config) if config.norm_position == "pre" else nn.Identity()

    def initialize(self) -> None:
        """Draw all weights (Radford et al. 2019): the deeper the stack, the smaller the residual branches' ends."""
        self.apply(initialize)
        ends = [linear for layer in self.layers for linear in layer.branch_ends]
        for linear in ends:
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(len(ends)))

    def run(self, items: Tensor, places: Tensor, caches: Caches) -> Tensor:
        """Hidden vectors of items at the given positions, `[row, time, hidden_size]`."""
        # Padding may lie beyond the last position; its lookup is never used.
        places = places.clamp(max=self.max_positions - 1)
        hidden = self.embedding(items)
        if self.embedding_scale is not None:
            hidden = hidden * self.embedding_scale
        if self.position_embedding is not None:
            hidden = hidden + self.position_embedding(places)
        # Tables are looked up as embeddings: indexing becomes GatherND, which no CUDA graph can replay: it copies
        # sizes from temporary host memory.
        if self.positions == "sinusoidal":
            hidden = hidden + F.embedding(places, self.sinusoids)
        rotation = F.embedding(places, self.rotations) if self.positions == "rotary" else None
        hidden = self.dropout(self.embedding_norm(hidden))
        for layer in self.layers:
            hidden = layer(hidden, rotation, caches)
        return self.final_norm(hidden)

    def show(self, items: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Attention weights of every layer over whole rows; `visible` as in `attention_weights`."""
        rows = ShownRows(visible)
        self.run(items, torch.arange(items.shape[1], device=items.device)[None], rows)
        return {f"attention.{layer}": weights for layer, weights in enumerate(rows.weights)}


class TransformerModule(TransformerTrunk):
    """The decoder: a step function. State: `position` int64 `[row]`, then each layer's key and value cache."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, Layer)
        self.output = output_layer(config.hidden_size, config.next_item, bias=config.output_bias)
        self.initialize()
        if config.tied_embeddings:
            self.output.weight = self.embedding.weight

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors `[row, time, hidden_size]`, normalised for the head, and the state with the new items."""
        caches = RowCaches(state, lengths)
        hidden = self.run(items, caches.places(items.shape[1]), caches)
        return hidden, caches.new_state()

    def forward_mixed(
        self, items: Tensor, state: State, chunk: Tensor, chunk_state: State
    ) -> tuple[Tensor, State, State]:
        """Run one item per row, `[row, 1]`, and a chunk of another row, `[1, time]`, in one pass over the weights.

        Returns the hidden vectors of the rows' items and of the chunk's last one, `[row + 1, hidden_size]`, and both
        states with the new items. Equals two calls of `forward`.
        """
        num_rows, time = items.shape[0], chunk.shape[1]
        rows = RowCaches(state, torch.ones_like(state[0]))
        last = RowCaches(chunk_state, torch.full_like(chunk_state[0], time))
        caches = MixedCaches(rows, num_rows, last)
        line = torch.cat([items.transpose(0, 1), chunk], dim=1)
        hidden = self.run(line, caches.places(time), caches)[0]
        return torch.cat([hidden[:num_rows], hidden[-1:]]), rows.new_state(), last.new_state()

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Attention weights of every layer over whole sequences, `attention.0` and so on, `[row, head, query, key]`."""
        return self.show(items, causal_mask(items.shape[1], items.device))

    def head(self, hidden: Tensor) -> Tensor:
        """Outputs for the next item, `[..., output_size]`."""
        return self.output(hidden)


class Layer(nn.Module):
    """Attention and feed-forward, each with a residual and a norm before or after it."""

    def __init__(self, config: TransformerLayersConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_width
        self.is_pre_norm = config.norm_position == "pre"
        self.head_size = head
        self.activation = config.activation
        self.attention_norm = norm(config)
        self.query = nn.Linear(width, config.num_heads * head, bias=config.bias)
        self.key = nn.Linear(width, config.key_value_heads * head, bias=config.bias)
        self.value = nn.Linear(width, config.key_value_heads * head, bias=config.bias)
        self.attention_output = nn.Linear(config.num_heads * head, width, bias=config.bias)
        self.feed_forward_norm = norm(config)
        if config.activation == "swiglu":
            self.gate = nn.Linear(width, config.feed_forward_width, bias=config.bias)
        self.up = nn.Linear(width, config.feed_forward_width, bias=config.bias)
        self.down = nn.Linear(config.feed_forward_width, width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def branch_ends(self) -> tuple[nn.Linear, ...]:
        """The last linear layer of each residual branch."""
        return self.attention_output, self.down

    def forward(self, hidden: Tensor, rotation: Tensor | None, caches: Caches) -> Tensor:
        """Hidden vectors `[row, time, hidden_size]`."""
        hidden = self._add(self.attention_norm, hidden, lambda inputs: self._attend(inputs, rotation, caches))
        return self._add(self.feed_forward_norm, hidden, self._feed_forward)

    def _add(self, norm: nn.Module, hidden: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a branch's output to the hidden vectors, with its norm before the branch or after the sum."""
        if self.is_pre_norm:
            return hidden + self.dropout(branch(norm(hidden)))
        return norm(hidden + self.dropout(branch(hidden)))

    def _attend(self, inputs: Tensor, rotation: Tensor | None, caches: Caches) -> Tensor:
        query, key, value = (
            linear(inputs).unflatten(2, (-1, self.head_size)) for linear in (self.query, self.key, self.value)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attended = caches.attend(query, key, value, self.dropout.p if self.training else 0.0)
        return self.attention_output(attended.flatten(2))

    def _feed_forward(self, inputs: Tensor) -> Tensor:
        up = self.up(inputs)
        if self.activation == "swiglu":
            return self.down(F.silu(self.gate(inputs)) * up)
        return self.down(_ACTIVATIONS[self.activation](up))


def norm(config: TransformerLayersConfig) -> nn.Module:
    """Make the configured normalisation."""
    if config.norm == "rms_norm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon, bias=config.bias)


def initialize(module: nn.Module) -> None:
    """Draw the weights of a linear layer or an embedding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
