"""The Vision Transformer as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VisionTransformer(nn.Module):
    """Transformer layers over patches and a class token; the head reads the class token's last vector."""

    def __init__(
        self,
        *,
        features: int,
        num_labels: int,
        max_positions: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.patch_embedding = nn.Linear(features, hidden_size)
        self.class_token = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + max_positions, hidden_size) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, num_labels)

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """Class vectors `[row, hidden_size]` of images `[row, patch, features]` with `lengths` real patches."""
        rows, num_patches = items.shape[:2]
        if self.training and self.noise:
            items = items + self.noise * torch.randn_like(items)
        tokens = torch.cat([self.class_token.expand(rows, 1, -1), self.patch_embedding(items)], dim=1)
        hidden = self.dropout(tokens + self.positions[: num_patches + 1])
        is_real = torch.arange(num_patches + 1, device=items.device) <= lengths[:, None]
        for layer in self.layers:
            hidden = layer(hidden, is_real[:, None, None])
        return self.norm(hidden[:, 0]), ()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[row, label]`."""
        return self.output(hidden)


class Layer(nn.Module):
    """Attention among all tokens and a feed-forward part, each with a norm before it and a residual."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, 4 * hidden_size)
        self.down = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Vectors `[row, token, hidden_size]`; `mask` bool `[row, 1, 1, token]` marks the tokens to attend to."""
        hidden = hidden + self.dropout(self._attend(self.attention_norm(hidden), mask))
        return hidden + self.dropout(self.down(F.gelu(self.up(self.feed_forward_norm(hidden)))))

    def _attend(self, inputs: Tensor, mask: Tensor) -> Tensor:
        heads = self.query_key_value(inputs).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(), mask)
        return self.attention_output(attended.transpose(1, 2).flatten(2))
