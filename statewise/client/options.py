"""Options of the clients and of models in this process, by the names of the arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from statewise.client.values import Prompt
from statewise.errors import InvalidRequestError

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)

BEAM_SEARCH = ("num_beams", "length_penalty", "num_hypotheses", "early_stopping")


class GenerateOptions(TypedDict, total=False):
    """Options of a generation. Without a sampling option it is greedy; None means absent."""

    version: int
    """Version of the model; by default the newest that is ready. Of a served model only."""
    max_tokens: int | None
    """Most items to generate; by default the server's number."""
    temperature: float | None
    """0 is greedy; 1 (the default beside another sampling option) is the model's own distribution."""
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    """The same seed gives the same tokens; by default one is picked and returned."""
    stop: str | Sequence[str]
    """Strings that end the answer, and are no part of it."""
    ignore_end_token: bool
    logprobs: int | None
    """0 for the log-probability of each chosen token; n for those of the n most probable tokens too."""
    source: Prompt | None
    """Source of an encoder-decoder; the prompt is then the beginning of the output, and mostly empty."""
    num_beams: int | None
    """Searches for the most probable answers, following so many beginnings at once; the next three need it."""
    length_penalty: float | None
    """Answers are ranked by log-probability / length ** length_penalty; by default 1."""
    num_hypotheses: int | None
    """Number of hypotheses that a search returns; by default 1."""
    early_stopping: bool
    """Whether a search ends with its first `num_beams` answers."""
    timeout: float | None
    """Seconds until the whole answer must be there; by default the client's."""


class ForecastOptions(TypedDict, total=False):
    """Options of a forecast. An option that is absent or None takes its default."""

    version: int
    """Version of the model; by default the newest that is ready. Of a served model only."""
    num_paths: int | None
    """Paths that are sampled; by default 100."""
    quantiles: Sequence[float] | None
    """In (0, 1), ascending; by default 0.05, 0.25, 0.5, 0.75, 0.95."""
    temperature: float | None
    """Above 1 the paths spread further than the model says, below 1 less; by default 1."""
    seed: int | None
    """The same seed gives the same paths; by default one is picked and returned."""
    return_paths: bool
    """Whether the paths come with the answer."""
    timeout: float | None
    """Seconds until the answer must be there; by default the client's."""


def check_known(options: Mapping[str, Any], kind: type) -> None:
    """Raise TypeError for an option that `kind`, a TypedDict, does not have."""
    unknown = set(options) - set(kind.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")


def sampling_of(options: GenerateOptions) -> dict[str, Any]:
    """Return the sampling options that are given."""
    return {name: value for name in SAMPLING if (value := options.get(name)) is not None}


def beam_search_of(options: GenerateOptions) -> dict[str, Any]:
    """Return the options of a beam search that are given. Raises InvalidRequestError for some without `num_beams`."""
    # By identity: 0 and 0.0 equal False, and are given.
    given = {name: value for name in BEAM_SEARCH if (value := options.get(name)) is not None and value is not False}
    if given and "num_beams" not in given:
        raise InvalidRequestError(f"is needed for {', '.join(given)}", field="num_beams")
    return given


def stop_strings_of(options: GenerateOptions) -> list[str]:
    """Return the stop strings; one string is a list of one."""
    stop = options.get("stop") or ()
    return [stop] if isinstance(stop, str) else list(stop)
