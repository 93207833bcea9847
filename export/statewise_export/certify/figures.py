"""Figures of a certificate as text: one line each, the measured numbers beside their limits."""

from __future__ import annotations

import math

from statewise.bundles.figures import (
    AnswerDivergence,
    DensityDivergence,
    Divergence,
    LabelDivergence,
    Limits,
    OutputAgreement,
    TokenAgreement,
    Tolerances,
    ValueDivergence,
)

_BATCH = {"exact": "bit for bit", "within": "within limit"}


def describe_outputs(outputs: OutputAgreement, tolerances: Tolerances) -> str:
    """The largest error and its limit."""
    error = f"max error {outputs.max_absolute_error:.2e} (limit {_limit(tolerances)})"
    return f"{error} at {outputs.positions_compared} positions"


def describe_tokens(tokens: TokenAgreement) -> str:
    """Equal tokens, and those within a near tie."""
    ties = f", {tokens.near_ties} within a near tie" if tokens.near_ties else ""
    return f"{tokens.equal} of {tokens.compared} equal{ties}"


def describe_batch(tolerances: Tolerances, *, is_invariant: bool) -> str:
    """Agreement of a row alone with the same row in a batch."""
    return _BATCH[tolerances.batch] if is_invariant else "differs"


def describe_divergence(divergence: Divergence, limits: Limits) -> str:
    """The divergence from float32 beside its limits."""
    if isinstance(divergence, ValueDivergence):
        return (
            f"mean difference {divergence.mean_difference:.2g} (limit {limits.difference:g}), "
            f"max {divergence.max_difference:.2g} deviations; {divergence.num_items} {divergence.held_out} items"
        )
    if isinstance(divergence, DensityDivergence):
        before, after = divergence.negative_log_likelihood_float32, divergence.negative_log_likelihood
        return (
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), negative log-likelihood "
            f"{before:.4f} -> {after:.4f} (limit {math.log(limits.perplexity_ratio):+.2g}); "
            f"{divergence.num_items} {divergence.held_out} items"
        )
    if isinstance(divergence, AnswerDivergence):
        return (
            f"mean difference {divergence.mean_difference:.2g} (limit {limits.answers:g}), max "
            f"{divergence.max_difference:.2g} deviations; {divergence.num_answers} answers, {divergence.held_out} items"
        )
    if isinstance(divergence, LabelDivergence):
        return (
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), {divergence.equal_labels:.1%} "
            f"of {divergence.num_labels} labels equal (limit {limits.equal_labels:.0%}); {divergence.held_out} items"
        )
    return (
        f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), perplexity "
        f"{divergence.perplexity_float32:.2f} -> {divergence.perplexity:.2f}, "
        f"ratio {divergence.perplexity / divergence.perplexity_float32:.4f} "
        f"(limit {limits.perplexity_ratio:g}); {divergence.num_tokens} {divergence.held_out} tokens"
    )


def _limit(tolerances: Tolerances) -> str:
    parts = {"|value|": tolerances.relative, "largest |value|": tolerances.of_largest}
    return " + ".join([f"{tolerances.absolute:.2g}", *(f"{part:g} x {of}" for of, part in parts.items() if part)])
