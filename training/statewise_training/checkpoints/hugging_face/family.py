"""Shared by all families: their part of config.json, and the origin of each tensor of our module."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from statewise.plugins import SequencePlugin
from statewise_training.families.transformer.config import TransformerConfig


class Source(NamedTuple):
    """The tensor of a Hugging Face file that becomes one of ours."""

    name: str
    is_transposed: bool = False
    """Stored `[in, out]` (GPT-2's Conv1D), where nn.Linear holds `[out, in]`."""
    part: int | None = None
    """Which third of a joint query, key and value matrix it is."""
    skipped: int = 0
    """Rows before its first."""
    is_row: bool = False
    """Stored `[1, size]`, where we hold `[size]`."""


class HuggingFaceConfig(BaseModel):
    """`config.json` of a family. Keys without effect on what the model computes are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    plugin: ClassVar[SequencePlugin[Any]]
    """The family that it is here."""
    prefix: ClassVar[str]
    """Of all names but the head's; a file of the model without its head lacks it."""
    head: ClassVar[frozenset[str]] = frozenset({"lm_head.weight"})
    """Names of the head."""
    not_weights: ClassVar[re.Pattern[str]]
    """Names of buffers that older versions saved and newer ones compute."""

    vocab_size: int = Field(ge=2)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    quantization_config: None = None

    @model_validator(mode="after")
    def _ids_are_in_the_vocabulary(self) -> HuggingFaceConfig:
        for key, ids in (("bos_token_id", [self.bos_token_id]), ("eos_token_id", self.end_tokens)):
            outside = [token for token in ids if token is not None and not 0 <= token < self.vocab_size]
            if outside:
                raise ValueError(
                    f"{key} {outside[0]} is not in the vocabulary (vocab_size {self.vocab_size}); "
                    "correct it in config.json (or generation_config.json), or set it to null"
                )
        return self

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end a text, the usual one first."""
        if self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def start_token(self) -> int | None:
        """First token of the decoder in a model with sources; None where the tokenizer decides how a prompt begins."""
        return None

    @property
    def window(self) -> int | None:
        """Positions that attention looks back over; None where it sees all."""
        return None

    @abstractmethod
    def convert(self) -> TransformerConfig:
        """The same model in our terms. Raises pydantic's ValidationError for sizes that contradict each other."""

    def named(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a file under their full names, each once."""
        is_bare = not any(name.startswith(self.prefix) for name in given)
        named = {
            f"{self.prefix}{name}" if is_bare and name not in self.head else name: tensor
            for name, tensor in given.items()
        }
        return {name: tensor for name, tensor in named.items() if not self.not_weights.search(name)}

    @abstractmethod
    def source(self, name: str) -> Source | None:
        """Return the origin of the tensor with this name; None for one that the family computes or lacks."""

    def constant(self, name: str, shape: torch.Size) -> Tensor:
        """A tensor of our module that comes from no file: a bias that the family lacks is zero."""
        return torch.zeros(shape)
