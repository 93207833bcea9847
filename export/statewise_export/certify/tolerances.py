"""Tolerances of parity, and limits on the divergence of lower precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.bundles.figures import Limits, Tolerances
from statewise.bundles.manifest import Variant
from statewise.model.spec import HeadSpec, MixtureHead, ModelSpec
from statewise_training.families.shared.mixture import log_density

RECURRENT = Tolerances(absolute=1e-5, relative=1e-5, near_tie=1e-4)
ATTENTION = Tolerances(absolute=1e-4, relative=1e-5, near_tie=1e-3)
"""Attention adds up many more numbers: two float32 implementations of one large decoder differ by a few 1e-5. A model
without state may have some."""
FLOAT16 = Tolerances(absolute=1e-3, relative=0.0, of_largest=4e-3, near_tie=1e-3)
"""Four units in the last place of the largest output: each has the rounding of sums of about its size."""

SHARE = 0.5
"""Tolerance of a variant that is held against itself, in deviations of its outputs.

Where a prefill and single steps differ in their last bit, an activation may be rounded to the next whole number, and
the layers behind carry that on: over millions of outputs it came to 0.002 deviations at most behind 3 layers, to 0.12
behind 12. A wrong state or mask is of the size of the deviation itself. Tokens are compared from equal states, so that
only a real near tie may change them.
"""

LIMITS = {
    "int8": Limits(kl_divergence=0.01, perplexity_ratio=1.02, difference=0.02, equal_labels=0.98, answers=0.1),
    "int4": Limits(kl_divergence=0.15, perplexity_ratio=1.2, difference=0.1, equal_labels=0.9, answers=0.4),
}
"""By precision. int8 should be indistinguishable: a little more or less training changes as much. int4 trades quality
for size; beyond these limits a smaller model in int8 would be better. Answers that differ by
0.1 of their deviation correlate to 0.99, by 0.4 to 0.9."""


def limits(precision: str, max_kl: float | None = None) -> Limits | None:
    """Limits on the divergence from float32; None for float32 and float16, whose outputs are compared.

    A larger `max_kl`, in nats, allows the perplexity's logarithm to grow by as much: on samples of the float32 model
    the two are one figure.
    """
    if precision not in LIMITS:
        return None
    usual = LIMITS[precision]
    if max_kl is None:
        return usual
    ratio = max(usual.perplexity_ratio, math.exp(max_kl))
    return usual.model_copy(update={"kl_divergence": max_kl, "perplexity_ratio": ratio})


def against_pytorch(spec: ModelSpec, variant: Variant) -> Tolerances:
    """Between PyTorch in float32 and a variant in float32 or float16.

    On CUDA a row alone need not be the row in a batch to the bit: kernels are chosen by a product's shape.
    """
    if variant.precision == "float16":
        chosen = FLOAT16
    elif variant.device == "cuda" or spec.has_caches or not spec.generates:
        chosen = ATTENTION
    else:
        chosen = RECURRENT
    return chosen.model_copy(update={"batch": "within"}) if variant.device == "cuda" else chosen


def for_scores(tolerances: Tolerances, head: HeadSpec, outputs: NDArray[Any], items: NDArray[Any]) -> Tolerances:
    """The tolerances of log-probabilities that follow from those of `outputs` `[time, size]` at items of a sequence.

    Of a token it is one output less what all of them come to, and says nothing of their size; of a vector it depends on
    every parameter, the more so the further the vector lies from the means.
    """
    largest = float(np.abs(outputs).max())
    if isinstance(head, MixtureHead):
        allowed = tolerances.absolute + tolerances.relative * np.abs(outputs) + tolerances.of_largest * largest
        parameters = torch.from_numpy(outputs[:-1]).requires_grad_()
        log_density(parameters, torch.from_numpy(items[1:]), head).sum().backward()  # type: ignore[no-untyped-call] # torch's
        slopes = np.abs(parameters.grad.numpy())  # type: ignore[union-attr] # backward has made it
        # A few positions stand for all of them.
        absolute = tolerances.absolute + 4 * float((slopes * allowed[:-1]).sum(axis=1).max())
    else:
        absolute = tolerances.absolute + 2 * tolerances.of_largest * largest
    return tolerances.model_copy(update={"absolute": absolute, "of_largest": 0.0})


def against_itself(outputs: NDArray[Any]) -> Tolerances:
    """Between a variant's own batches, chunks and graphs; `outputs` are some of it."""
    absolute = SHARE * float(outputs.std())
    # Outputs that are not finite are equal to nothing.
    absolute = absolute if np.isfinite(absolute) else 0.0
    return Tolerances(absolute=absolute, relative=0.0, near_tie=RECURRENT.near_tie)


def agree(actual: NDArray[Any], expected: NDArray[Any], tolerances: Tolerances) -> bool:
    """Whether output vectors `[..., size]` are equal within the tolerances."""
    size = np.abs(expected)
    allowed = tolerances.absolute + tolerances.relative * size
    allowed += tolerances.of_largest * size.max(axis=-1, keepdims=True)
    return bool((np.abs(actual.astype(np.float64) - expected) <= allowed).all())
