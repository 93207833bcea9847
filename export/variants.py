"""How a traced step becomes each variant of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from export.float16 import to_float16
from export.trace import TracedStep

Pass = Callable[[TracedStep], TracedStep]


@dataclass(frozen=True)
class VariantPlan:
    """The device and precision of a variant, and what is done to a traced step for it."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "float16", "int8", "int4"]
    passes: tuple[Pass, ...]
    attention: Literal["gqa", "standard"] = "gqa"


VARIANTS: dict[str, VariantPlan] = {
    "cpu-float32": VariantPlan("cpu", "float32", ()),
    "cuda-float16": VariantPlan("cuda", "float16", (to_float16,)),
    # GroupQueryAttention has float16 and bfloat16 kernels only on CUDA.
    "cuda-float32": VariantPlan("cuda", "float32", (), attention="standard"),
}
