"""The sampling rules, stated once, in NumPy.

The graph (statewise_export.choosing) computes the same, token for token; the PyTorch reference calls this module.
Order: logit bias, penalties, temperature, top-k, top-p, min-p, draw by inverse CDF from one uniform number.

Top-k, top-p and min-p are exact at every size of the vocabulary. With the tokens sorted by falling logit, of equal ones
the lower id first, a token is kept where all three allow it:
- top-k: it is among the first k;
- top-p: the tokens before it hold less than top_p of the mass that top-k leaves;
- min-p: it is at least min_p times as probable as the first.

The draw goes through the tokens in vocabulary order where nothing is restricted; else first through the HEAD most
probable ones, by falling logit, and then through the others in vocabulary order: to sort a whole vocabulary would take
longer than the model's own step. A row's result depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.model.sampling_inputs import SAMPLING_INPUTS

FloatArray = NDArray[np.float32]

HEAD = 100
"""Tokens that a restricted row draws by falling logit."""

MAX_LOGIT_BIAS_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling. The default draws from the model's own distribution; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken, without a draw."""
        return self.temperature == 0.0

    @property
    def restricts(self) -> bool:
        """Whether top-k, top-p or min-p may exclude a token."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def penalizes(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def validate(self, vocabulary_size: int) -> None:
        """Raise InvalidRequestError, naming the field, for a value outside its range."""
        self._check_draw()
        if not 0 <= self.top_k <= 2**31:
            raise InvalidRequestError(f"must be 0 (off) or more, got {self.top_k}", field="top_k")
        _check_range("top_p", self.top_p, 0.0, 1.0, low_is_open=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_is_open=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if len(self.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
            raise InvalidRequestError(
                f"at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(self.logit_bias)}", field="logit_bias"
            )
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocabulary_size:
                raise InvalidRequestError(
                    f"token {token} is outside the vocabulary (0 to {vocabulary_size - 1})", field="logit_bias"
                )
            _check_range("logit_bias", bias, -100.0, 100.0)

    def validate_for_vectors(self) -> None:
        """Raise InvalidRequestError, naming the field, for a bad value, or a rule that works on tokens only."""
        self._check_draw()
        for rule in SAMPLING_INPUTS:
            if "mixture" not in rule.heads and not rule.is_neutral(self):
                given = "" if rule.per_token else f", got {rule.read(self):g}"
                raise InvalidRequestError(
                    f"works on tokens, and this model gives real vectors; leave it out{given}", field=rule.field
                )

    def _check_draw(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 100.0)
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InvalidRequestError(f"must fit into 64 bits, got {self.seed}", field="seed")


GREEDY = SamplingParams(temperature=0.0)


def _check_range(name: str, value: float, low: float, high: float, *, low_is_open: bool = False) -> None:
    # Written so that NaN, which compares false with everything, is refused too.
    inside = (low < value if low_is_open else low <= value) and value <= high
    if not inside:
        interval = f"{'(' if low_is_open else '['}{low:g}, {high:g}]"
        raise InvalidRequestError(f"must lie in {interval}, got {value:g}", field=name)


class Uniforms:
    """The uniform numbers of one request: number `i` belongs to the request's `i`-th generated token.

    Philox4x64 (Salmon et al. 2011) keyed by the seed and advanced by whole blocks, so that any position can be had
    without drawing those before it, and a stream that was moved or interrupted goes on with the numbers it would have
    had.
    """

    block_length = 256
    """Numbers drawn at once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block_index = -1
        self._block = np.empty(0, np.float32)

    def take(self, position: int, count: int) -> FloatArray:
        """Numbers `position` to `position + count - 1`, float32 in [0, 1)."""
        first, offset = divmod(position, self.block_length)
        last = (position + count - 1) // self.block_length
        if first == last:
            return self._draw(first)[offset : offset + count]
        return np.concatenate([self._draw(index) for index in range(first, last + 1)])[offset : offset + count]

    def _draw(self, index: int) -> FloatArray:
        if index != self._block_index:
            # The block index is the high word of the counter: blocks never overlap.
            generator = np.random.Generator(np.random.Philox(key=self._seed, counter=index << 64))
            self._block = self._make_block(generator)
            self._block_index = index
        return self._block

    def _make_block(self, generator: np.random.Generator) -> FloatArray:
        return generator.random(self.block_length, dtype=np.float32)


def adjust_logits(
    logits: FloatArray, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> FloatArray:
    """Logits `[vocabulary]` after bias and penalties.

    `prompt` counts for the repetition penalty only (Keskar et al. 2019); presence and frequency count the output.
    """
    adjusted = logits.astype(np.float32, copy=True)
    for token, bias in params.logit_bias.items():
        adjusted[token] += np.float32(bias)
    if params.penalizes:
        counts: dict[int, int] = dict.fromkeys(prompt, 0)
        for token in output:
            counts[token] = counts.get(token, 0) + 1
        tokens = np.fromiter(counts, np.int64, len(counts))
        repeats = np.fromiter(counts.values(), np.float32, len(counts))
        values = adjusted[tokens]
        penalty = np.float32(params.repetition_penalty)
        values = np.where(values > 0, values / penalty, values * penalty)
        values = values - np.float32(params.presence_penalty) * (repeats > 0).astype(np.float32)
        adjusted[tokens] = values - np.float32(params.frequency_penalty) * repeats
    return adjusted


def choose(logits: FloatArray, params: SamplingParams, uniform: np.float32) -> int:
    """The next token, from adjusted logits `[vocabulary]` and one uniform number in [0, 1)."""
    if params.is_greedy:
        return int(np.argmax(logits))
    scaled = logits / np.float32(params.temperature)
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum(dtype=np.float32)
    order = np.arange(len(scaled))
    if params.restricts:
        order = draw_order(scaled)
        weights = restrict(scaled, weights, params)[order]
    ends = np.cumsum(weights, dtype=np.float64)
    return int(order[np.count_nonzero(ends <= np.float64(uniform) * ends[-1])])


def draw_order(scaled: NDArray[Any]) -> NDArray[np.int64]:
    """Ids `[vocabulary]` in the order in which a restricted row draws: the head by falling logit, the others by id."""
    order = np.argsort(-scaled, kind="stable")
    return np.concatenate([order[:HEAD], np.sort(order[HEAD:])])


def restrict(scaled: NDArray[Any], weights: NDArray[Any], params: SamplingParams) -> NDArray[np.float64]:
    """Weights `[vocabulary]` after top-k, top-p and min-p: zero for the excluded tokens, the others as they were."""
    order = np.argsort(-scaled, kind="stable")
    left = weights[order].astype(np.float64)
    left[params.top_k or len(left) :] = 0
    ends = np.cumsum(left)
    left[ends - left >= np.float64(np.float32(params.top_p)) * ends[-1]] = 0
    left[weights[order] < np.float32(params.min_p) * weights[order[0]]] = 0
    kept = np.zeros_like(left)
    kept[order] = left
    return kept


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities over the last axis, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
