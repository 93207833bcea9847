"""Outputs of an encoder: their settings, and the layer that computes them from the hidden vectors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from statewise.errors import ConfigError
from statewise.model.spec import EmbeddingHead, LabelsHead, ModelSpec, RealInput, TokenInput, ValueHead
from statewise.plugins import DataSpec, item_size
from statewise_training.families.shared.items import InputConfig


class AnswerConfig(InputConfig):
    """Settings common to all encoders, apart from their layers."""

    max_positions: int = Field(default=512, ge=2, le=1 << 20)
    """Longest sequence."""
    head: Literal["labels", "embedding", "value"] = "labels"
    """Output: labels, an embedding that places sequences of one label near each other, or real numbers."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """Pooling of a sequence's hidden vectors: their mean, or the first or the last item's."""
    labels: tuple[str, ...] | None = None
    """Filled in from the data."""
    labels_per: Literal["sequence", "item"] = "sequence"
    """Filled in from the data."""
    vector_size: int = Field(default=128, ge=1)
    """Numbers in an embedding."""
    value_size: int | None = Field(default=None, ge=1)
    """Numbers in a value. Filled in from the data."""

    @model_validator(mode="after")
    def _answer_is_known(self) -> AnswerConfig:
        if self.head == "labels" and self.labels is None:
            raise ValueError("head: labels needs labels, which come from data of kind labelled")
        if self.head == "value" and self.value_size is None:
            raise ValueError("head: value needs value_size, which comes from data of kind labelled with target: value")
        return self

    @property
    def is_per_item(self) -> bool:
        """Whether each item has an answer, rather than the sequence."""
        return self.head == "labels" and self.labels_per == "item"

    def model_spec(self) -> ModelSpec:
        """Return the specification: no state, these items, this answer."""
        if self.vocabulary_size is not None:
            items: TokenInput | RealInput = TokenInput(vocabulary_size=self.vocabulary_size)
        else:
            items = RealInput(features=self.item_size)
        return ModelSpec(input=items, head=self.head_spec, max_positions=self.max_positions)

    @property
    def head_spec(self) -> LabelsHead | EmbeddingHead | ValueHead:
        """Return the answer's head as the manifest records it."""
        if self.head == "embedding":
            return EmbeddingHead(size=self.vector_size)
        if self.head == "value":
            return ValueHead(features=self.value_size or 0)
        return LabelsHead(names=self.labels or (), per=self.labels_per)


def answer_for_data(config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
    """Fill in the sizes of items and answers from the data. Raises ConfigError where they do not fit."""
    completed = {**config, **item_size(data.input)}
    if data.value_size is not None:
        return {**completed, "head": "value", "value_size": data.value_size}
    if data.labels is None:
        return completed
    if config.get("head") == "embedding":
        if data.labels_per == "item":
            raise ConfigError("model.head: an embedding is learnt from a label per sequence, but the data has tags")
        return completed
    return {**completed, "head": "labels", "labels": list(data.labels), "labels_per": data.labels_per}


class Answer(nn.Linear):
    """Output layer: from the hidden vectors of all items to labels, a value or an embedding."""

    def __init__(self, width: int, config: AnswerConfig) -> None:
        super().__init__(width, config.head_spec.output_size)
        self.pooling = None if config.is_per_item else config.pooling
        self.is_embedding = config.head == "embedding"

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Pool to one vector per row, `[row, width]`; per-item labels keep `[row, time, width]`."""
        if self.pooling is None:
            return hidden
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[2])
            return hidden.gather(1, last).squeeze(1)
        is_real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        total = torch.where(is_real[:, :, None], hidden, 0.0).sum(1)
        return total / lengths.clamp(min=1)[:, None].to(hidden.dtype)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits or values; embeddings have length 1, so the dot product of two is their cosine."""
        answer = super().forward(pooled)
        return F.normalize(answer, dim=-1) if self.is_embedding else answer
