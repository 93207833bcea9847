"""The choice of ONNX operators for attention while a module is traced: the one seam between families and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Lowering = Literal["gqa", "standard", "plain"]

_lowering: ContextVar[Lowering] = ContextVar("attention_lowering", default="gqa")


@contextmanager
def attention_lowering(lowering: Lowering) -> Iterator[None]:
    """Trace attention as GroupQueryAttention (`gqa`), as ONNX's own operators of opset 24 (`standard`), or as products.

    The last one, `plain`, is for graphs that read whole sequences from their first item on: the caches are left empty.
    """
    token = _lowering.set(lowering)
    try:
        yield
    finally:
        _lowering.reset(token)


def current_lowering() -> Lowering:
    """The lowering that attention must be traced as."""
    return _lowering.get()
