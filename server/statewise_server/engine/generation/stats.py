"""Counters of one engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Totals since the start, for metrics and benchmarks."""

    num_steps: int = 0
    num_mixed_steps: int = 0
    """Steps that read a prompt's chunk in the run that decodes."""
    num_prompt_items: int = 0
    """Read; those that were loaded are counted apart."""
    num_source_items: int = 0
    """Source items, which are read whole before their prompts."""
    num_cached_items: int = 0
    num_output_items: int = 0
    busy_seconds: float = 0.0
