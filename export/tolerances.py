"""What the certificate lets pass."""

from __future__ import annotations

from statewise.certificate import Tolerances
from statewise.manifest import ModelSpec, Variant

RECURRENT = Tolerances(absolute=1e-5, relative=1e-5, near_tie=1e-4)
CACHES = Tolerances(absolute=1e-4, relative=1e-5, near_tie=1e-3)
"""Attention adds up many more numbers: two float32 implementations of one large decoder differ by a few 1e-5."""
FLOAT16 = Tolerances(absolute=1e-3, relative=0.0, of_largest=4e-3, near_tie=1e-3)
"""Four units in the last place of the largest output: each has the rounding of sums of about its size."""


def against_pytorch(spec: ModelSpec, variant: Variant) -> Tolerances:
    """Between PyTorch in float32 and a variant in float32 or float16.

    On CUDA a row alone need not be the row in a batch to the bit: kernels are chosen by a product's shape.
    """
    if variant.precision == "float16":
        chosen = FLOAT16
    elif variant.device == "cuda" or any(state.kind == "cache" for state in spec.state):
        chosen = CACHES
    else:
        chosen = RECURRENT
    return chosen.model_copy(update={"batch": "within"}) if variant.device == "cuda" else chosen
