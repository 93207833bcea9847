"""A GenerateRequest into the engine's terms.

Checked here is what only the wire can get wrong, or what must be known before anything large is copied; what
bounds every request, wherever it comes from, is checked by `Engine.submit`.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.rules.sampling import GREEDY, MAX_LOGIT_BIAS_ENTRIES, SamplingParams
from statewise.v1 import generation_pb2 as pb
from statewise_server.engine.request import BeamParams, GenerationRequest
from statewise_server.services.v1.reading import encode_text, read_deadline, read_vectors, tokenizer_for
from statewise_server.services.v1.sources import read_source

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine

MAX_STOP_STRING_CHARACTERS = 256


async def read_request(request: pb.GenerateRequest, engine: Engine, seconds_left: float | None) -> GenerationRequest:
    """Translate a request for the model that it names.

    Raises InvalidRequestError, naming the field as the wire spells it, or DeadlineExceededError.
    """
    deadline = read_deadline(seconds_left)
    stop = request.stop
    # Source and prompt last: they are the costly part.
    sampling, stop_strings, num_top = (
        _sampling(request, engine),
        _stop_strings(stop.strings),
        _log_probabilities(request),
    )
    beam_search = _beam_search(request, sampling)
    source = await read_source(request, engine)
    prompt = await _prompt(request, engine)
    return GenerationRequest(
        prompt=prompt,
        sampling=sampling,
        max_tokens=stop.max_tokens if stop.HasField("max_tokens") else engine.limits.tokens_after(len(prompt)),
        end_tokens=frozenset() if stop.ignore_end_token else engine.manifest.special_tokens.ends,
        stop_strings=stop_strings,
        log_probabilities=num_top,
        deadline=deadline,
        source=source,
        beam_search=beam_search,
    )


def _sampling(request: pb.GenerateRequest, engine: Engine) -> SamplingParams:
    given = request.sampling
    head = engine.manifest.model.head
    seed = given.seed if given.HasField("seed") else secrets.randbits(32)
    if not request.HasField("sampling"):
        return SamplingParams(temperature=GREEDY.temperature, seed=seed)
    if head.kind == "value":
        raise InvalidRequestError(
            f"model {engine.manifest.name!r} gives values, which are not sampled; leave it out",
            field="sampling",
        )
    if len(given.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
        # Before they are copied: a message can hold several hundred thousand.
        raise InvalidRequestError(
            f"at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(given.logit_bias)}",
            field="sampling.logit_bias",
        )
    return SamplingParams(
        temperature=given.temperature if given.HasField("temperature") else 1.0,
        top_k=given.top_k,
        top_p=given.top_p if given.HasField("top_p") else 1.0,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty if given.HasField("repetition_penalty") else 1.0,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=dict(given.logit_bias),
        seed=seed,
    )


def _beam_search(request: pb.GenerateRequest, sampling: SamplingParams) -> BeamParams | None:
    if not request.HasField("beam_search"):
        return None
    if not sampling.is_greedy or sampling.penalizes or sampling.logit_bias:
        raise InvalidRequestError(
            "a beam search follows the model's own distribution and draws nothing; leave it out, or set temperature 0 "
            "alone",
            field="sampling",
        )
    given = request.beam_search
    return BeamParams(
        num_beams=given.num_beams,
        length_penalty=given.length_penalty if given.HasField("length_penalty") else 1.0,
        num_hypotheses=given.num_hypotheses if given.HasField("num_hypotheses") else 1,
        early_stopping=given.early_stopping,
    )


def _stop_strings(strings: Collection[str]) -> tuple[str, ...]:
    for position, string in enumerate(strings):
        if len(string) > MAX_STOP_STRING_CHARACTERS:
            raise InvalidRequestError(
                f"at most {MAX_STOP_STRING_CHARACTERS} characters, got {len(string)}",
                field=f"stop.strings[{position}]",
            )
    return tuple(strings)


def _log_probabilities(request: pb.GenerateRequest) -> int:
    if not request.HasField("log_probabilities"):
        return -1
    top = int(request.log_probabilities.top)
    if top < 0:
        raise InvalidRequestError(f"must be 0 or more, got {top}", field="log_probabilities.top")
    return top


async def _prompt(request: pb.GenerateRequest, engine: Engine) -> NDArray[np.int64] | NDArray[np.float32]:
    kind = request.WhichOneof("prompt") or "text"
    reads = engine.manifest.model.input
    if reads.kind == "real":
        if kind != "vectors" and request.WhichOneof("prompt"):
            raise InvalidRequestError(f"model {engine.manifest.name!r} reads vectors", field=kind)
        check_length = partial(check_prompt_length, engine)
        return read_vectors(request.vectors, reads.features, engine.manifest, "vectors", check_length)
    if kind == "vectors":
        raise InvalidRequestError(f"model {engine.manifest.name!r} reads tokens or text", field=kind)
    if kind == "tokens":
        return _tokens(request.tokens, engine)
    return await _text(request.text, engine)


def _tokens(given: pb.TokenSequence, engine: Engine) -> NDArray[np.int64]:
    field = "tokens.ids"
    # The length first: a message can hold millions of ids.
    check_prompt_length(engine, len(given.ids) + _num_start(engine), field)
    return _with_start(np.fromiter(given.ids, np.int64, len(given.ids)), engine, field)


async def _text(text: str, engine: Engine) -> NDArray[np.int64]:
    if not text:
        return _with_start(np.empty(0, np.int64), engine, "prompt")
    tokenizer = tokenizer_for(engine.tokenizer, engine.manifest, "text")
    ids = np.array(await encode_text(text, tokenizer), np.int64)
    check_prompt_length(engine, len(ids) + _num_start(engine), "text")
    return _with_start(ids, engine, "text")


def _num_start(engine: Engine) -> int:
    return 0 if engine.manifest.special_tokens.start is None else 1


def _with_start(ids: NDArray[np.int64], engine: Engine, field: str) -> NDArray[np.int64]:
    start = engine.manifest.special_tokens.start
    if start is not None:
        return np.concatenate([np.array([start], np.int64), ids])
    if not len(ids):
        raise InvalidRequestError(
            f"is empty, and model {engine.manifest.name!r} has no start token to begin from", field=field
        )
    return ids


def check_prompt_length(engine: Engine, length: int, field: str) -> None:
    """Raise InvalidRequestError for a prompt of too many items, before it is copied."""
    limit = engine.limits.max_prompt_tokens
    if length > limit:
        raise InvalidRequestError(
            f"the prompt has {length} items, the start token included; at most {limit} are allowed",
            field=field,
        )
