"""What counts as equal, by what a variant computes with."""

from __future__ import annotations

from statewise.certificate import Tolerances
from statewise.manifest import ModelSpec, Variant

_FLOAT32 = Tolerances(absolute=1e-5, relative=1e-5, near_tie=1e-4)
_LARGE_SUMS = Tolerances(absolute=1e-4, relative=1e-5, near_tie=1e-3)
"""Attention adds up many more numbers: two float32 implementations of one large decoder differ by a few 1e-5."""
_FLOAT16 = Tolerances(absolute=1e-3, relative=0.0, of_largest=4e-3, near_tie=1e-3)
"""Four units in the last place of the largest output: each has the rounding of sums of about its size."""


def tolerances(spec: ModelSpec, variant: Variant) -> Tolerances:
    """The tolerances of a variant.

    On CUDA a row alone need not be the row in a batch to the bit: kernels are chosen by a product's shape.
    """
    if variant.precision == "float16":
        chosen = _FLOAT16
    elif variant.device == "cuda" or any(state.kind == "cache" for state in spec.state):
        chosen = _LARGE_SUMS
    else:
        chosen = _FLOAT32
    return chosen.model_copy(update={"batch": "within"}) if variant.device == "cuda" else chosen
