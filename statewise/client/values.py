"""Results of the clients and of models in this process, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from statewise.client import frames

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogProbability:
    """Log-probability of a token, or log-density of a vector, in nats, by the model's own distribution."""

    token: int
    """0 for a vector."""
    log_probability: float
    top: tuple[TokenLogProbability, ...] = ()
    """The most probable tokens in its place, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Items read and made."""

    prompt_tokens: int
    """The start token included."""
    completion_tokens: int
    """An end token included."""
    cached_prompt_tokens: int
    """Prompt tokens whose state was cached from an earlier request."""
    source_tokens: int = 0
    """Items of the source, including the tokens that the server puts around it."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One of the answers that a beam search has found."""

    text: str
    tokens: tuple[int, ...]
    """An end token included."""
    log_probability: float
    """Sum over all its tokens, in nats."""
    score: float
    """log_probability / len(tokens) ** length_penalty, by which the answers are ranked."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """Model, version and variant that generated, and the seed that repeats the result."""

    model: str
    version: int
    variant: str
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One message of a stream: one item or several."""

    text: str
    """Whole characters only; empty where the model has no tokenizer."""
    tokens: tuple[int, ...]
    vectors: NDArray[np.float32] | None
    """float32 `[time, features]`, from a model of real vectors."""
    log_probabilities: tuple[TokenLogProbability, ...]
    finish_reason: FinishReason | None
    """In the last chunk: "stop" (end token or stop string) or "length" (max_tokens)."""
    usage: Usage | None
    """In the last chunk."""
    info: GenerationInfo | None
    """In the first chunk."""
    hypotheses: tuple[Hypothesis, ...] = ()
    """Hypotheses of a beam search, in its only chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A whole answer."""

    text: str
    tokens: tuple[int, ...]
    vectors: NDArray[np.float32] | None
    """float32 `[time, features]`, from a model of real vectors."""
    log_probabilities: tuple[TokenLogProbability, ...]
    finish_reason: FinishReason
    usage: Usage
    info: GenerationInfo
    hypotheses: tuple[Hypothesis, ...] = ()
    """Hypotheses of a beam search, best first; text and tokens above are those of the first."""

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each item. Raises ConfigError without pandas."""
        return frames.generation_table(self)


@dataclass(frozen=True, slots=True)
class PredictionInfo:
    """Model, version and variant that predicted."""

    model: str
    version: int
    variant: str


@dataclass(frozen=True, slots=True)
class Tag:
    """The most probable label of one item."""

    label: str
    probability: float
    start: int | None = None
    """Position of the item's first character in a text."""
    end: int | None = None
    """Position after the item's last character in a text."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Prediction of one sequence: one of label, tags, embedding and value, by the model's kind."""

    info: PredictionInfo
    label: str | None = None
    """The most probable label."""
    probabilities: Mapping[str, float] | None = None
    """Probability of every label, where there is one label for the sequence."""
    tags: tuple[Tag, ...] | None = None
    """One for each item."""
    embedding: NDArray[np.float32] | None = None
    """float32 `[size]`."""
    value: NDArray[np.float32] | None = None
    """float32 `[features]`."""

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each label, tag or number. Raises ConfigError without pandas."""
        return frames.prediction_table(self)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Log-probabilities of one sequence, item by item."""

    info: PredictionInfo
    log_probabilities: NDArray[np.float32]
    """Nats, of each item given those before it (of real vectors the density's); without a start token the first item
    has none."""
    total: float
    tokens: tuple[int, ...]
    """Scored tokens, without the start token; empty for real vectors."""

    @property
    def perplexity(self) -> float:
        """The exponential of the mean surprise; NaN where no item has a probability."""
        count = len(self.log_probabilities)
        return math.exp(-self.total / count) if count else math.nan

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each scored item. Raises ConfigError without pandas."""
        return frames.score_table(self)


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """Attention weights or gate activations of a sequence."""

    items: tuple[str, ...]
    """Each item as text, a start token included; empty where the model has no tokenizer."""
    tensors: Mapping[str, NDArray[np.float32]]
    """By name, with the layer behind a dot: attention weights `[head, query, key]`, activations `[time, unit]`."""
    info: PredictionInfo


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Forecast of a series: statistics of many sampled paths."""

    levels: tuple[float, ...]
    """Levels of the quantiles, ascending."""
    quantiles: NDArray[np.float32]
    """`[level, horizon, features]`, of each feature by itself."""
    mean: NDArray[np.float32]
    """`[horizon, features]`."""
    paths: NDArray[np.float32] | None
    """`[path, horizon, features]`, where they were asked for."""
    seed: int
    """Repeats the forecast."""
    info: PredictionInfo
    features: tuple[str, ...] | None = None
    """Names of the features, where the context was a pandas DataFrame or a named Series."""
    index: Any = None
    """pandas Index of the items, which goes on from the context's; None where that had none."""

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame `[horizon, (feature, mean and quantiles)]`. Raises ConfigError without pandas."""
        return frames.forecast_table(self)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of a server's repository."""

    name: str
    version: int
    state: Literal["loading", "ready", "refused"]
    reason: str
    """Why it is refused."""
    plugin: str
    variant: str
    input_kind: str
    """"tokens" or "real"."""
    head_kind: str
    """"categorical", "value", "mixture", "labels" or "embedding"."""
    input_size: int
    """Size of the vocabulary, or number of features."""
    has_tokenizer: bool
    """Whether prompts may be text."""
    start_token: int | None
    end_token: int | None
    state_bytes_per_row: int
    max_prompt_tokens: int
    max_tokens: int
    max_rows: int
    max_waiting: int
    running: int
    waiting: int
    max_positions: int
    """Most items of a request, prompt and output together; 0 where there is no such limit."""
    state_budget_bytes: int
    source_kind: str
    """"tokens" or "real" where `generate` needs a source, else empty."""
    source_size: int
    """Size of the source's vocabulary, or number of its features."""
    max_source_tokens: int
    methods: tuple[str, ...]
    """Supported methods: "Generate", "Forecast", "Predict", "Score", "Inspect"."""
    labels: tuple[str, ...]
    """Names of its labels, where it gives labels."""
    max_items: int
    """Items of the longest sequence that `predict` and `score` take, a start token included."""


Prompt = str | Sequence[int] | NDArray[np.int64] | NDArray[np.float32] | Any
"""Text, token ids (a sequence or array of integers `[time]`), or real vectors (floats `[time, features]`, of any
array-like, a pandas DataFrame too)."""
