"""Base of the importable families: config.json, and the origin of each tensor of our module."""

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
    """Origin of one of our tensors: a tensor of the Hugging Face file."""

    name: str
    is_transposed: bool = False
    """Stored `[in, out]` (GPT-2's Conv1D), where nn.Linear holds `[out, in]`."""
    part: int | None = None
    """Index of the third in a joint query, key and value matrix."""
    skipped: int = 0
    """Number of leading rows to skip."""
    is_row: bool = False
    """Stored `[1, size]`, where we hold `[size]`."""


class HuggingFaceConfig(BaseModel):
    """`config.json` of a family. Keys without effect on the model's computation are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    plugin: ClassVar[SequencePlugin[Any]]
    """Plugin of our family."""
    prefix: ClassVar[str]
    """Prefix of all names but the head's; absent in files of models without the head."""
    head: ClassVar[frozenset[str]] = frozenset({"lm_head.weight"})
    """Names of the head's tensors."""
    not_weights: ClassVar[re.Pattern[str]]
    """Pattern of buffers that older versions saved and newer ones compute."""

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
        """End token ids, the usual one first."""
        if self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def start_token(self) -> int | None:
        """The decoder's first token in a model with sources; None where the tokenizer sets a prompt's start."""
        return None

    @property
    def window(self) -> int | None:
        """Width of the attention window in positions; None where attention sees all."""
        return None

    @abstractmethod
    def convert(self) -> TransformerConfig:
        """Convert to our configuration. Raises pydantic's ValidationError for contradictory sizes."""

    def named(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's weights under their full names, each once."""
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
        """Make a tensor that no file holds: zeros for a bias that the family lacks."""
        return torch.zeros(shape)
