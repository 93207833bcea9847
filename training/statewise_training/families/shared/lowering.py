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

    `plain`, attention as products, is for graphs that read whole sequences from the first item: the caches stay empty.
    """
    token = _lowering.set(lowering)
    try:
        yield
    finally:
        _lowering.reset(token)


def current_lowering() -> Lowering:
    """Return the lowering in which attention is being traced."""
    return _lowering.get()
