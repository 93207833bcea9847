"""Limits of one request, checked before it reaches the engine's thread; errors name arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.model.spec import CategoricalHead, HeadSpec, InputSpec, ModelSpec, TokenInput
from statewise_server.engine.request import BeamParams, GenerationRequest
from statewise_server.engine.settings import EngineSettings

MAX_LENGTH_PENALTY = 10
"""Far beyond use; the power of a length must not overflow."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that bound a request, and the model's own bounds."""

    max_positions: int | None
    """Positions of prompt and output together, less the last item: the lower of the model's and operator's limit.
    None where neither gives one."""
    max_waiting: int
    max_waiting_tokens: int
    max_prompt_tokens: int
    max_tokens: int
    default_max_tokens: int
    max_stop_strings: int
    max_top_log_probabilities: int
    max_beams: int

    @classmethod
    def of(cls, settings: EngineSettings, spec: ModelSpec) -> Limits:
        """The limits of a model under these settings."""
        max_positions = min((n for n in (spec.max_positions, settings.max_positions) if n), default=None)
        positions = max_positions or max(settings.max_prompt_tokens, settings.max_tokens)
        return cls(
            max_positions=max_positions,
            max_waiting=settings.max_waiting,
            max_waiting_tokens=settings.max_waiting_tokens,
            max_prompt_tokens=min(settings.max_prompt_tokens, positions),
            max_tokens=min(settings.max_tokens, positions),
            default_max_tokens=min(settings.default_max_tokens, settings.max_tokens, positions),
            max_stop_strings=settings.max_stop_strings,
            max_top_log_probabilities=settings.max_top_log_probabilities,
            max_beams=settings.max_beams,
        )

    def tokens_after(self, prompt_length: int) -> int:
        """Items to generate where a request names no number; at least 1, for `check` to refuse what does not fit."""
        if self.max_positions is None:
            return self.default_max_tokens
        return max(1, min(self.default_max_tokens, self._tokens_that_fit(prompt_length)))

    def _tokens_that_fit(self, prompt_length: int) -> int:
        """Items after a prompt of this length; the last one is not read again, so it takes no position."""
        assert self.max_positions is not None
        return self.max_positions - prompt_length + 1

    def check(self, request: GenerationRequest, spec: ModelSpec, *, has_tokenizer: bool) -> None:
        """Raise InvalidRequestError, naming the argument, for a request that this model can never serve."""
        self._check_prompt(request.prompt, spec.input)
        _check_source(request.source, spec)
        if not 1 <= request.max_tokens <= self.max_tokens:
            raise InvalidRequestError(
                f"must lie in [1, {self.max_tokens}], got {request.max_tokens}", field="max_tokens"
            )
        self.check_positions(len(request.prompt), request.max_tokens, spec, "max_tokens")
        self._check_stop_strings(request.stop_strings, has_tokenizer=has_tokenizer)
        if request.log_probabilities > self.max_top_log_probabilities or request.log_probabilities < -1:
            raise InvalidRequestError(
                f"must lie in [0, {self.max_top_log_probabilities}], got {request.log_probabilities}", field="logprobs"
            )
        _check_choice(request, spec.head)
        if request.beam_search is not None:
            self._check_beam_search(request, request.beam_search, is_tokens=isinstance(spec.input, TokenInput))

    def check_positions(self, num_read: int, num_made: int, spec: ModelSpec, field: str) -> None:
        """Raise InvalidRequestError where so many items after so many others exceed the positions."""
        if self.max_positions is None or num_made <= self._tokens_that_fit(num_read):
            return
        whose = "the model's" if self.max_positions == spec.max_positions else "this server's limit of"
        raise InvalidRequestError(
            f"{num_made} after {num_read} items exceed {whose} {self.max_positions} positions; at most "
            f"{max(0, self._tokens_that_fit(num_read))} fit",
            field=field,
        )

    def _check_prompt(self, prompt: NDArray[Any], reads: InputSpec) -> None:
        if not len(prompt):
            raise InvalidRequestError(
                "is empty, and the model has no start token to begin from; give at least one item", field="prompt"
            )
        check_length(len(prompt), self.max_prompt_tokens, "prompt")
        check_items(prompt, reads, "prompt")

    def _check_beam_search(self, request: GenerationRequest, params: BeamParams, *, is_tokens: bool) -> None:
        if not is_tokens:
            raise InvalidRequestError("this model gives real vectors, which cannot be searched", field="num_beams")
        if not 2 <= params.num_beams <= self.max_beams:
            raise InvalidRequestError(f"must lie in [2, {self.max_beams}], got {params.num_beams}", field="num_beams")
        if not 1 <= params.num_hypotheses <= params.num_beams:
            raise InvalidRequestError(
                f"must lie in [1, {params.num_beams}], the number of beams; got {params.num_hypotheses}",
                field="num_hypotheses",
            )
        # Written so that NaN, which compares false with everything, is refused too.
        if not abs(params.length_penalty) <= MAX_LENGTH_PENALTY:
            raise InvalidRequestError(
                f"must lie in [-{MAX_LENGTH_PENALTY}, {MAX_LENGTH_PENALTY}], got {params.length_penalty:g}",
                field="length_penalty",
            )
        if request.stop_strings:
            raise InvalidRequestError("a beam search does not stop at strings; leave them out", field="stop")
        if request.log_probabilities >= 0:
            raise InvalidRequestError(
                "a beam search gives the log-probability of each hypothesis; leave it out", field="logprobs"
            )

    def _check_stop_strings(self, stop_strings: tuple[str, ...], *, has_tokenizer: bool) -> None:
        if len(stop_strings) > self.max_stop_strings:
            raise InvalidRequestError(
                f"at most {self.max_stop_strings} stop strings, got {len(stop_strings)}", field="stop"
            )
        if stop_strings and not has_tokenizer:
            raise InvalidRequestError("this model has no tokenizer, so its output has no text", field="stop")
        if "" in stop_strings:
            raise InvalidRequestError("a stop string is empty", field="stop")


def _check_source(source: NDArray[Any] | None, spec: ModelSpec) -> None:
    if spec.source is None or spec.max_source_positions is None:
        if source is not None:
            raise InvalidRequestError("this model reads no source; give a prompt alone", field="source")
        return
    if source is None:
        raise InvalidRequestError("is missing; this model makes its output of a source", field="source")
    if not len(source):
        raise InvalidRequestError("is empty; give at least one item", field="source")
    check_length(len(source), spec.max_source_positions, "source")
    check_items(source, spec.source, "source")


def check_length(length: int, most: int, field: str, num_around: int = 0) -> None:
    """Raise InvalidRequestError for a sequence of too many items, of which so many special tokens surround a text."""
    if length > most:
        included = f"{num_around} special tokens around the text" if num_around else "a start token"
        raise InvalidRequestError(f"has {length} items, {included} included; at most {most} are allowed", field=field)


def check_items(items: NDArray[Any], reads: InputSpec, field: str) -> None:
    """Raise InvalidRequestError for ids outside the vocabulary, and for vectors of another width or not finite."""
    if isinstance(reads, TokenInput):
        outside = items[(items < 0) | (items >= reads.vocabulary_size)]
        if len(outside):
            raise InvalidRequestError(
                f"id {outside[0]} is outside the vocabulary (0 to {reads.vocabulary_size - 1})", field=field
            )
    elif items.ndim != 2 or items.shape[1] != reads.features:
        raise InvalidRequestError(
            f"has {items.shape[-1]} features per item, the model reads {reads.features}", field=f"{field}.features"
        )
    elif not np.isfinite(items).all():
        raise InvalidRequestError("holds NaN or infinity", field=field)


def _check_choice(request: GenerationRequest, head: HeadSpec) -> None:
    """Check the sampling parameters against the head of the model."""
    if isinstance(head, CategoricalHead):
        request.sampling.validate(head.vocabulary_size)
    elif head.kind == "mixture":
        request.sampling.validate_for_vectors()
        if request.log_probabilities > 0:
            raise InvalidRequestError(
                f"must be 0, for this model gives real vectors, of which none can be listed; got "
                f"{request.log_probabilities}",
                field="logprobs",
            )
    elif request.log_probabilities >= 0:
        raise InvalidRequestError("this model gives values, which have no probability", field="logprobs")
