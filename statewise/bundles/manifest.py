"""Manifest of a bundle: the contract between export and the server.

The server obeys this description and nothing else; it never asks which family a model belongs to.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from statewise.model.spec import ModelSpec, Strict

SCHEMA_VERSION = 2


def _inside_bundle(name: str) -> str:
    path = PurePosixPath(name)
    if path.name != name or name in {"", ".", ".."} or "\\" in name:
        raise ValueError(f"{name!r} is not a plain file name; every file lies in the bundle's own folder")
    return name


OneShotGraph = Literal["predict", "score", "inspect"]
"""The graphs that read whole sequences at once: inputs `items` and `lengths`, and no state."""

FileName = Annotated[str, AfterValidator(_inside_bundle)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


TokenId = Annotated[int, Field(ge=0)]


class Surround(Strict):
    """Tokens around a text, as [CLS] and [SEP] of BERT."""

    before: tuple[TokenId, ...] = ()
    after: tuple[TokenId, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens on both sides."""
        return len(self.before) + len(self.after)


class SpecialTokens(Strict):
    """Ids with a meaning of their own; None where the vocabulary has no such token."""

    start: int | None = Field(default=None, ge=0)
    """Put before every prompt, so that an empty prompt has something to start from."""
    end: int | None = Field(default=None, ge=0)
    """Ends a generation with finish reason STOP."""
    other_ends: tuple[TokenId, ...] = ()
    """End it too, as the end of a turn does in models for chat."""
    surround: Surround | None = None
    """Put around a text that an encoder reads: an input of Predict or Inspect, or the source of an encoder-decoder.
    Token ids that a client sends are read as they are."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return frozenset(self.other_ends if self.end is None else (self.end, *self.other_ends))


class Variant(Strict):
    """One lowering of the model to ONNX, for a device and a precision."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "float16", "int8", "int4"]
    step: FileName | None = None
    """One run: `time` new items of every row, one output item per row (prefill, and decode). None without state."""
    choose: FileName | None = None
    """One run after the step's: what the model put out to one item per row; where absent, the step itself chooses."""
    decode: FileName | None = None
    """One run: K items for every row, the state looping inside the graph."""
    mixed: FileName | None = None
    """One run: one item of each of the first rows, and a chunk of a prompt for the row behind them."""
    encode: FileName | None = None
    """Source to first state: every state tensor but the caches."""
    predict: FileName | None = None
    """Whole sequences to predictions: `ModelSpec.prediction`."""
    score: FileName | None = None
    """Whole sequences to the log-probability of each of their items after the first."""
    inspect: FileName | None = None
    """Whole sequences to attention weights or gate activations; where the bundle was exported with `--inspect`."""
    data: tuple[FileName, ...] = ()
    """External weights of the graphs; empty where the weights lie inside them."""
    state_dtype: Literal["float32", "float16"] = "float32"
    """Type in which real-number state is held, whatever the model's own description says."""
    ragged_prefill: bool = True
    """Whether one run takes several new items of several rows; else each such row has a run of its own."""
    max_threads: int | None = Field(default=None, ge=1)
    """Threads of one run beyond which a row's numbers would depend on the rows beside it; None for any number."""
    certificate: FileName

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the ONNX files."""
        first = (self.step, self.choose, self.decode, self.mixed, self.encode)
        return (*(name for name in first if name), *self.one_shot_graphs.values())

    @property
    def one_shot_graphs(self) -> dict[OneShotGraph, FileName]:
        """ONNX files of the graphs that read whole sequences at once, by graph."""
        files: dict[OneShotGraph, FileName | None]
        files = {"predict": self.predict, "score": self.score, "inspect": self.inspect}
        return {graph: file for graph, file in files.items() if file is not None}


class Manifest(Strict):
    """`manifest.json`: everything the server must know of a bundle, and the hash of every other file."""

    schema_version: Literal[2] = 2
    name: ModelName
    version: int = Field(ge=1)
    plugin: str
    plugin_config: dict[str, Any]
    """For the record (`statewise verify` rebuilds the module from it); the server does not read it."""
    model: ModelSpec
    special_tokens: SpecialTokens = SpecialTokens()
    tokenizer: FileName | None = None
    variants: dict[str, Variant] = Field(min_length=1)
    created_with: dict[str, str]
    """Versions of the libraries that made the bundle."""
    files: dict[FileName, Sha256]
    """sha256 of every file in the folder but this one."""

    @model_validator(mode="after")
    def _files_are_listed(self) -> Manifest:
        wanted = {self.tokenizer} if self.tokenizer else set()
        for variant in self.variants.values():
            wanted |= {*variant.graphs, *variant.data, variant.certificate}
        missing = sorted(wanted - self.files.keys())
        if missing:
            raise ValueError(f"files named but not listed with a hash: {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _graphs_fit_the_model(self) -> Manifest:
        wanted = {
            "step": self.model.generates,
            "encode": self.model.source is not None,
            "predict": self.model.prediction is not None,
        }
        for name, variant in self.variants.items():
            for graph, is_wanted in wanted.items():
                if (getattr(variant, graph) is not None) != is_wanted:
                    problem = "is missing" if is_wanted else "has no use in this model"
                    raise ValueError(f"variant {name!r}: graph {graph!r} {problem}")
        return self
