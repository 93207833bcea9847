"""What the families share: their part of config.json, and where a tensor of our module comes from."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.transformer.plugin import TransformerConfig


class Source(NamedTuple):
    """The tensor of a Hugging Face file that becomes one of ours."""

    name: str
    is_transposed: bool = False
    """Stored `[in, out]` (GPT-2's Conv1D), where nn.Linear holds `[out, in]`."""
    part: int | None = None
    """Which third of a joint query, key and value matrix it is."""


class HuggingFaceConfig(BaseModel):
    """`config.json` of a family. Keys that change nothing in what the model computes are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prefix: ClassVar[str]
    """Of all names but the head's; a file of the bare decoder lacks it."""
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
                    "correct it in config.json, or set it to null"
                )
        return self

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end a text, the usual one first."""
        if self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def window(self) -> int | None:
        """Positions that attention looks back over; None where it sees all."""
        return None

    @abstractmethod
    def convert(self) -> TransformerConfig:
        """The same model in our terms. Raises pydantic's ValidationError for sizes that contradict each other."""

    @abstractmethod
    def source(self, name: str) -> Source | None:
        """Where the tensor of our module with this name comes from; None for a bias that the family lacks."""
