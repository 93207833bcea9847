"""The graph inputs of the choice of the next items: one named input for each sampling rule, and those they share.

A sampling rule is one line of SAMPLING_INPUTS, its NumPy (statewise.rules.sampling), its nodes in the graph and its
field on the wire. The runtime feeds the rules that a graph declares and refuses requests that need any other, so a
bundle stays in use when a rule is added.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statewise.errors import InvalidRequestError
from statewise.model.spec import DType, HeadSpec

if TYPE_CHECKING:
    from statewise.rules.sampling import SamplingParams

NOISE = "sampling.noise"
"""float32 `[row, step, ...]`: a uniform number for a token; a uniform and `features` normal numbers for a vector."""
NUM_TOP = "sampling.num_top"
"""int64 scalar: -1 for no log-probabilities, else how many of the most probable tokens to report."""
ADJUSTED_TOKENS = "sampling.adjusted_tokens"
"""int64 `[row, entry]`: tokens with a bias or a penalty; a row with fewer repeats an entry of its own."""
SEEN = "sampling.seen"
"""bool `[row, entry]`: whether the token occurs in the prompt or the output."""
OUTPUT_COUNTS = "sampling.output_counts"
"""float32 `[row, entry]`: how often the token occurs in the output."""


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """The graph input of one sampling rule: a number for each row, or for each adjusted token of a row."""

    field: str
    """Name of the rule in SamplingParams, and of the field in a request."""
    dtype: DType
    neutral: float
    """The number with which the rule changes nothing."""
    heads: tuple[str, ...] = ("categorical",)
    """Kinds of head that the rule applies to."""
    per_token: bool = False
    """Whether a request gives a mapping from tokens to numbers, `[row, entry]`, instead of one number, `[row]`."""

    @property
    def name(self) -> str:
        """Name of the graph input."""
        return f"sampling.{self.field}"

    def read(self, params: SamplingParams) -> float:
        """The number that a request gives; only for rules with one number."""
        value: float = getattr(params, self.field)
        return value

    def is_neutral(self, params: SamplingParams) -> bool:
        """Whether the rule changes nothing for this request."""
        return not getattr(params, self.field) if self.per_token else self.read(params) == self.neutral


TEMPERATURE = SamplingInput("temperature", "float32", 1.0, heads=("categorical", "mixture"))
TOP_K = SamplingInput("top_k", "int64", 0)
TOP_P = SamplingInput("top_p", "float32", 1.0)
MIN_P = SamplingInput("min_p", "float32", 0.0)
REPETITION_PENALTY = SamplingInput("repetition_penalty", "float32", 1.0)
PRESENCE_PENALTY = SamplingInput("presence_penalty", "float32", 0.0)
FREQUENCY_PENALTY = SamplingInput("frequency_penalty", "float32", 0.0)
LOGIT_BIAS = SamplingInput("logit_bias", "float32", 0.0, per_token=True)

SAMPLING_INPUTS = (
    TEMPERATURE,
    TOP_K,
    TOP_P,
    MIN_P,
    REPETITION_PENALTY,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
    LOGIT_BIAS,
)
"""All sampling rules."""


def sampling_inputs(head: HeadSpec) -> tuple[SamplingInput, ...]:
    """The rules by which a head of this kind chooses items."""
    return tuple(rule for rule in SAMPLING_INPUTS if head.kind in rule.heads)


def check_rules(params: SamplingParams, head: HeadSpec, declared: Collection[str]) -> None:
    """Raise InvalidRequestError, naming the field, for a rule that the graphs, whose inputs are `declared`, lack."""
    for rule in sampling_inputs(head):
        if rule.name not in declared and not rule.is_neutral(params):
            raise InvalidRequestError(
                f"must be left out, got {getattr(params, rule.field)}: the model was exported without this rule; "
                "export it again to use it",
                field=rule.field,
            )
