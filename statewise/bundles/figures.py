"""Figures of a certificate: tolerances and limits, and the agreement or divergence that was measured."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict, Field

from statewise.model.spec import Strict


class Figures(Strict):
    """Base of the records here: a certificate that failed may hold NaN, which JSON's numbers cannot."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Tolerances(Figures):
    """Errors up to which two outputs, or two tokens, count as equal."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)
    of_largest: float = Field(default=0.0, ge=0)
    """Part of the largest absolute value in the same output vector that is added."""
    near_tie: float = Field(default=0.0, ge=0)
    """Two tokens whose logits are at most this far apart (and `of_largest`) may change places."""
    batch: Literal["exact", "within"] = "exact"
    """Whether a row alone is held to the bit against the row in a batch, or within these tolerances."""


class OutputAgreement(Figures):
    """Errors of the outputs against the reference's, over all cases."""

    max_absolute_error: float
    max_relative_error: float
    positions_compared: int = Field(ge=0)


class TokenAgreement(Figures):
    """Number of tokens, or labels, that are the reference's."""

    compared: int = Field(ge=0)
    equal: int = Field(ge=0)
    near_ties: int = Field(default=0, ge=0)
    """Tokens that differ within the tolerance."""

    @property
    def all_equal(self) -> bool:
        """Whether every one is the reference's, near ties aside."""
        return self.equal + self.near_ties == self.compared


class Limits(Figures):
    """Limits on the divergence of a variant of lower precision from PyTorch in float32."""

    kl_divergence: float = Field(ge=0)
    """Nats per item, mean."""
    perplexity_ratio: float = Field(ge=1)
    """Perplexity of the variant over that of float32; of mixtures, geometric mean of the densities' ratios."""
    difference: float = Field(ge=0)
    """Values: mean absolute difference, in units of the data's standard deviation."""
    equal_labels: float = Field(default=0.0, ge=0, le=1)
    """Least share of labels of whole sequences, or of their items, that are the same."""
    answers: float = Field(default=math.inf, ge=0)
    """Embeddings and values of whole sequences: mean absolute difference, in units of their own standard deviation."""


class TokenDivergence(Figures):
    """A variant and PyTorch in float32 on the same tokens, each predicted from those before it."""

    held_out: Literal["data", "sampled"]
    """Tokens that training has not seen, or, where the checkpoint has none, drawn from the float32 model itself."""
    num_tokens: int = Field(ge=1)
    perplexity_float32: float
    perplexity: float
    kl_divergence: float
    """Mean divergence of the variant's distribution from that of float32, in nats."""
    equal_greedy: float
    """Share of tokens of which both hold the same one for the most probable."""
    common_prefix: float
    """Mean number of greedy tokens after a prompt until the two part, of `num_generated`."""
    num_generated: int = Field(ge=1)

    def within(self, limits: Limits) -> bool:
        """Whether it keeps to the limits; NaN does not."""
        ratio = self.perplexity / self.perplexity_float32
        return self.kl_divergence <= limits.kl_divergence and ratio <= limits.perplexity_ratio


class DensityDivergence(Figures):
    """A variant's mixtures and those of PyTorch in float32 on the same real vectors, in nats per vector."""

    held_out: Literal["data", "sampled"]
    """Vectors that training has not seen, or, where the checkpoint has none, drawn from the float32 model itself."""
    num_items: int = Field(ge=1)
    negative_log_likelihood_float32: float
    negative_log_likelihood: float
    kl_divergence: float
    """Divergence of the variant from float32, estimated with a vector drawn from each of the latter."""

    def within(self, limits: Limits) -> bool:
        """Whether it keeps to the limits; NaN does not."""
        loss = self.negative_log_likelihood - self.negative_log_likelihood_float32
        return self.kl_divergence <= limits.kl_divergence and loss <= math.log(limits.perplexity_ratio)


class ValueDivergence(Figures):
    """A variant and PyTorch in float32 on the same real vectors, in units of the data's standard deviation."""

    held_out: Literal["data", "sampled"]
    """Vectors that training has not seen, or, where the checkpoint has none, normally distributed ones."""
    num_items: int = Field(ge=1)
    mean_difference: float
    max_difference: float

    def within(self, limits: Limits) -> bool:
        """Whether it keeps to the limits; NaN does not."""
        return self.mean_difference <= limits.difference


class AnswerDivergence(Figures):
    """A variant and PyTorch in float32 on embeddings or values of the same sequences.

    In units of the standard deviation of each number from one sequence to another.
    """

    held_out: Literal["data", "sampled"]
    """Items that training has not seen, or, where the checkpoint has none, random ones."""
    num_answers: int = Field(ge=1)
    mean_difference: float
    max_difference: float

    def within(self, limits: Limits) -> bool:
        """Whether it keeps to the limits; NaN does not."""
        return self.mean_difference <= limits.answers


class LabelDivergence(Figures):
    """A variant and PyTorch in float32 on the labels of the same sequences."""

    held_out: Literal["data", "sampled"]
    """Items that training has not seen, or, where the checkpoint has none, random ones."""
    num_labels: int = Field(ge=1)
    kl_divergence: float
    """Mean divergence of the variant's distribution over the labels from that of float32, in nats."""
    equal_labels: float
    """Share of labels of which both hold the same one for the most probable, or float32 one nearly as probable."""

    def within(self, limits: Limits) -> bool:
        """Whether it keeps to the limits; NaN does not."""
        return self.kl_divergence <= limits.kl_divergence and self.equal_labels >= limits.equal_labels


Divergence = TokenDivergence | DensityDivergence | ValueDivergence | LabelDivergence | AnswerDivergence
