"""Generation without a wire: options into an engine's request, the engine's events into chunks."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from statewise.client.items import Items
from statewise.client.options import GenerateOptions, beam_search_of, sampling_of, stop_strings_of
from statewise.client.values import Chunk, GenerationInfo, Hypothesis, TokenLogProbability, Usage
from statewise.errors import InvalidRequestError
from statewise.rules.sampling import GREEDY, MAX_LOGIT_BIAS_ENTRIES, SamplingParams
from statewise_server.engine.request import BeamParams, GenerationRequest
from statewise_server.local.reading import Reader, wanted_kind

if TYPE_CHECKING:
    from statewise_server.engine import request as engine_values
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, Stream

MAX_STOP_STRING_CHARACTERS = 256


def read_generation(
    engine: Engine, prompt: Items, source: Items | None, options: GenerateOptions, deadline: float | None
) -> GenerationRequest:
    """Translate a request, but for its limits, which `Engine.submit` checks. Raises InvalidRequestError by argument."""
    sampling, beam_search = _sampling(options, engine), None
    if given := beam_search_of(options):
        beam_search = _beam_search(given, sampling)
    stop_strings, num_top = _stop_strings(options), _num_top(options)
    # Source and prompt last: they are the costly part.
    read_source = _read_source(source, engine)
    read_prompt = Reader.of_prompts(engine).read(prompt, "prompt").items
    max_tokens = options.get("max_tokens")
    return GenerationRequest(
        prompt=read_prompt,
        sampling=sampling,
        max_tokens=engine.limits.tokens_after(len(read_prompt))
        if max_tokens is None
        else integer(max_tokens, "max_tokens"),
        end_tokens=frozenset() if options.get("ignore_end_token") else engine.manifest.special_tokens.ends,
        stop_strings=stop_strings,
        log_probabilities=num_top,
        deadline=deadline,
        source=read_source,
        beam_search=beam_search,
    )


def _read_source(source: Items | None, engine: Engine) -> Any:
    reader, name = Reader.of_sources(engine), engine.manifest.name
    if reader is None:
        if source is not None:
            raise InvalidRequestError(f"model {name!r} reads no source; give a prompt alone", field="source")
        return None
    if source is None:
        wanted = wanted_kind(reader.reads)
        raise InvalidRequestError(f"is missing; model {name!r} makes its output of {wanted}", field="source")
    return reader.read(source, "source").items


def _sampling(options: GenerateOptions, engine: Engine) -> SamplingParams:
    given = sampling_of(options)
    seed = integer(given.pop("seed"), "seed") if "seed" in given else None
    if not given and seed is None:
        return SamplingParams(temperature=GREEDY.temperature, seed=secrets.randbits(32))
    if engine.manifest.model.head.kind == "value":
        raise InvalidRequestError(
            f"model {engine.manifest.name!r} gives values, which are not sampled; leave it out", field="sampling"
        )
    bias, top_k = given.pop("logit_bias", {}), given.pop("top_k", 0)
    if len(bias) > MAX_LOGIT_BIAS_ENTRIES:
        # Before they are copied: a message can hold several hundred thousand.
        raise InvalidRequestError(f"at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(bias)}", field="logit_bias")
    return SamplingParams(
        **{name: single(value, name) for name, value in given.items()},
        top_k=integer(top_k, "top_k"),
        logit_bias={integer(token, "logit_bias"): single(value, "logit_bias") for token, value in bias.items()},
        seed=secrets.randbits(32) if seed is None else seed,
    )


def _beam_search(given: dict[str, Any], sampling: SamplingParams) -> BeamParams:
    if not sampling.is_greedy or sampling.penalizes or sampling.logit_bias:
        raise InvalidRequestError(
            "a beam search follows the model's own distribution and draws nothing; leave it out, or set temperature 0 "
            "alone",
            field="sampling",
        )
    return BeamParams(
        num_beams=integer(given["num_beams"], "num_beams"),
        length_penalty=single(given.get("length_penalty", 1.0), "length_penalty"),
        num_hypotheses=integer(given.get("num_hypotheses", 1), "num_hypotheses"),
        early_stopping=bool(given.get("early_stopping", False)),
    )


def _stop_strings(options: GenerateOptions) -> tuple[str, ...]:
    strings = stop_strings_of(options)
    for position, string in enumerate(strings):
        if not isinstance(string, str):
            raise InvalidRequestError(f"must be a string, got {string!r}", field=f"stop[{position}]")
        if len(string) > MAX_STOP_STRING_CHARACTERS:
            raise InvalidRequestError(
                f"at most {MAX_STOP_STRING_CHARACTERS} characters, got {len(string)}", field=f"stop[{position}]"
            )
    return tuple(strings)


def _num_top(options: GenerateOptions) -> int:
    if (given := options.get("logprobs")) is None:
        return -1
    top = integer(given, "logprobs")
    if top < 0:
        raise InvalidRequestError(f"must be 0 or more, got {top}", field="logprobs")
    return top


def integer(value: Any, field: str) -> int:
    """Return a whole number. Raises InvalidRequestError, naming the field, for anything else."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidRequestError(f"must be a whole number, got {value!r}", field=field) from error


def single(value: Any, field: str) -> float:
    """Return a number in single precision, which is what every protocol sends, so that all give the same bits.

    Raises InvalidRequestError, naming the field, for anything else.
    """
    if not isinstance(value, Real):
        raise InvalidRequestError(f"must be a number, got {value!r}", field=field)
    with np.errstate(over="ignore"):
        return float(np.float32(float(value)))


class Progress:
    """One stream's answer so far, as chunks."""

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream
        self._num_items = 0
        self._has_begun = False

    def add(self, delta: Delta) -> Chunk:
        """Return a delta as a chunk: the first names the model and its seed, the last counts the items."""
        is_first, self._has_begun = not self._has_begun, True
        self._num_items += len(delta.items)
        is_vectors = bool(delta.items) and isinstance(delta.items[0], np.ndarray)
        return Chunk(
            text=delta.text,
            tokens=() if is_vectors else tuple(delta.items),
            vectors=np.stack(delta.items) if is_vectors else None,
            log_probabilities=tuple(map(_log_probability, delta.log_probabilities)),
            finish_reason=delta.finish_reason,
            usage=self._usage() if delta.finish_reason is not None else None,
            info=self._info() if is_first else None,
            hypotheses=tuple(_hypotheses(delta.hypotheses)),
        )

    def _usage(self) -> Usage:
        request = self._stream.request
        num_prompt = len(request.prompt)
        return Usage(num_prompt, self._num_items, self._stream.num_cached, request.num_items - num_prompt)

    def _info(self) -> GenerationInfo:
        manifest, seed = self._engine.manifest, self._stream.request.sampling.seed
        return GenerationInfo(manifest.name, manifest.version, self._engine.variant_name, seed or 0)


def _log_probability(entry: engine_values.TokenLogProbability) -> TokenLogProbability:
    top = tuple(TokenLogProbability(token, value) for token, value in entry.top)
    return TokenLogProbability(entry.token, entry.log_probability, top)


def _hypotheses(found: Iterable[engine_values.Hypothesis]) -> Iterable[Hypothesis]:
    for one in found:
        figures = single(one.log_probability, "log_probability"), single(one.score, "score")
        yield Hypothesis(one.text, tuple(one.tokens), *figures, one.finish_reason)
