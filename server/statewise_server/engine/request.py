"""Requests to an engine, and the events that it delivers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from statewise.errors import StatewiseError
from statewise.rules.sampling import SamplingParams
from statewise_server.runtime.state.pool import SavedRow

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class BeamParams:
    """A search for the most probable answers, instead of a choice item by item."""

    num_beams: int
    """Beginnings that are followed at once; each has a row."""
    length_penalty: float = 1.0
    """Answers are ranked by log-probability / length ^ length_penalty."""
    num_hypotheses: int = 1
    """Answers that are returned."""
    early_stopping: bool = False
    """Whether the search ends with `num_beams` whole answers, rather than when the best branch would not beat them."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt and how to go on from it, already checked against the wire's rules."""

    prompt: NDArray[Any]
    """int64 `[time]` token ids, the start token included, or float32 `[time, features]`; at least one item."""
    sampling: SamplingParams
    """Its seed is always set."""
    max_tokens: int
    end_tokens: frozenset[int] = frozenset()
    """Any of them ends the generation."""
    stop_strings: tuple[str, ...] = ()
    log_probabilities: int = -1
    """-1: none; 0: the chosen item's; n: those of the n most probable tokens too."""
    deadline: float | None = None
    """time.monotonic() seconds after which the request fails."""
    source: NDArray[Any] | None = None
    """Source of an encoder-decoder: int64 `[time]` or float32 `[time, features]`; None for other models."""
    beam_search: BeamParams | None = None
    """Excludes sampling, stop strings and log-probabilities."""
    start: SavedRow | None = None
    """The state after the first items of the prompt, all but the last one at most: these are not read again."""
    keeps_state: bool = False
    """Whether the state after the prompt is wanted, for others to start from."""

    @property
    def num_items(self) -> int:
        """Items to read, of prompt and source."""
        return len(self.prompt) + (0 if self.source is None else len(self.source))


@dataclass(frozen=True, slots=True)
class TokenLogProbability:
    """Log-probability (nats) of a chosen token, and of the most probable in its place; or a vector's log-density."""

    token: int
    """0 where a vector was chosen."""
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Hypothesis:
    """A whole answer that a beam search has found."""

    tokens: list[int]
    log_probability: float
    """Sum over all its tokens, in nats."""
    score: float
    finish_reason: FinishReason
    text: str = ""


@dataclass(slots=True)
class Delta:
    """New items, text and end of a stream since the last delivery."""

    items: list[Any] = field(default_factory=list)
    """Token ids, or float32 vectors `[features]`."""
    text: str = ""
    log_probabilities: list[TokenLogProbability] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    state: SavedRow | None = None
    """After the prompt, where the request has asked for it."""
    error: StatewiseError | None = None
    """Why the request failed; set instead of finish_reason."""
    hypotheses: list[Hypothesis] = field(default_factory=list)
    """Hypotheses of a beam search, best first; `items` and `text` are those of the first."""

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None

    def merge(self, later: Delta) -> None:
        """Append what came after."""
        self.items += later.items
        self.text += later.text
        self.log_probabilities += later.log_probabilities
        self.finish_reason = later.finish_reason
        self.state = self.state or later.state
        self.error = later.error
        self.hypotheses += later.hypotheses


class Channel(Protocol):
    """Receiver of an engine's events: one for each event loop or thread that consumes streams."""

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        """Take the events of all this channel's streams; called on the engine's thread, at most once per step."""


@dataclass(eq=False, slots=True)
class Stream:
    """A submitted request, as its consumer holds it."""

    request: GenerationRequest
    channel: Channel
    cancelled: bool = False
    num_cached: int = 0
    """Prompt items whose state was saved by an earlier request; known when the first event is delivered."""
