"""The variants that a model can be exported as: device, precision, and the passes that lower a trace to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from statewise.errors import ConfigError
from statewise_export.passes.cells import expand_cells
from statewise_export.passes.float16 import to_float16
from statewise_export.passes.int4 import int4_products
from statewise_export.passes.int8 import int8_products
from statewise_export.passes.merge import merge_products
from statewise_export.passes.reductions import order_sums
from statewise_export.passes.spare_rows import spare_rows

if TYPE_CHECKING:
    # At run time it would bring torch along, which `--help` need not wait for.
    from statewise_export.trace.trace import TracedStep

Pass = Callable[["TracedStep"], "TracedStep"]


@dataclass(frozen=True)
class VariantPlan:
    """The making of one variant."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "float16", "int8", "int4"]
    purpose: str
    """For the command's help."""
    passes: tuple[Pass, ...] = ()
    """Applied to every traced step, in this order."""
    quantization: Pass | None = None
    """Applied last, where products are computed in few bits."""
    attention: Literal["gqa", "standard"] = "gqa"
    """Operators for attention over a cache: GroupQueryAttention, or ONNX's own operators, which take ragged rows."""

    @property
    def state_dtype(self) -> Literal["float32", "float16"]:
        """Number type of the variant's state."""
        return "float16" if self.precision == "float16" else "float32"

    @property
    def shows(self) -> bool:
        """Whether it can show attention and gates: rounded to fewer bits, they would be another model's."""
        return self.precision == "float32"

    def lower(self, traced: TracedStep) -> TracedStep:
        """Return the traced step after all passes."""
        for lowered_by in self.passes:
            traced = lowered_by(traced)
        return self.quantization(traced) if self.quantization else traced

    def in_float32(self) -> VariantPlan:
        """Return the same plan without quantization or half precision: the same nodes, rounded nowhere."""
        passes = tuple(lowered_by for lowered_by in self.passes if lowered_by is not to_float16)
        return replace(self, precision="float32", passes=passes, quantization=None)


VARIANTS: dict[str, VariantPlan] = {
    "cpu-float32": VariantPlan(
        "cpu",
        "float32",
        "the model as it was trained; equal to PyTorch within rounding",
        (order_sums, merge_products, spare_rows),
    ),
    "cpu-int8": VariantPlan(
        "cpu",
        "int8",
        "a third of the memory and about twice as fast at any number of rows; next to no loss",
        (order_sums, expand_cells, spare_rows, merge_products),
        quantization=int8_products,
    ),
    "cpu-int4": VariantPlan(
        "cpu",
        "int4",
        "the least memory and the fastest for one stream, but slower than cpu-int8 for many; some loss",
        (order_sums, expand_cells, spare_rows, merge_products),
        quantization=int4_products,
    ),
    "cuda-float16": VariantPlan(
        "cuda", "float16", "for a GPU: half the memory, products in half precision; norms in float32", (to_float16,)
    ),
    # GroupQueryAttention has float16 and bfloat16 kernels only on CUDA.
    "cuda-float32": VariantPlan("cuda", "float32", "for a GPU, in single precision throughout", attention="standard"),
}

DEFAULT_VARIANT = "cpu-float32"


def plans(names: Iterable[str]) -> dict[str, VariantPlan]:
    """Return the plans of these variants, each once.

    Raises ConfigError for an unknown name, for none at all, and where a variant's device is not here to certify it.
    """
    # Brings ONNX Runtime along, which `--help` need not wait for.
    from statewise_server.runtime.ort.providers import why_not

    chosen = list(dict.fromkeys(names))
    known = ", ".join(VARIANTS)
    if not chosen:
        raise ConfigError(f"--variant: name at least one of {known}")
    for name in chosen:
        if name not in VARIANTS:
            raise ConfigError(f"--variant {name}: there is no such variant; choose from {known}")
        if reason := why_not(VARIANTS[name].device):
            raise ConfigError(f"--variant {name}: it is certified where it runs, which is not here: {reason}")
    return {name: VARIANTS[name] for name in chosen}
