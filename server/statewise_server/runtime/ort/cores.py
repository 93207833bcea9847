"""Cores that this process may use, and threads per run."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Count the cores of the process where the operating system knows them, else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(wanted: int, limit: int | None = None) -> int:
    """Threads of one run on the CPU: as many as are wanted, every core for 0, up to a limit."""
    chosen = wanted or num_cores()
    return chosen if limit is None else min(chosen, limit)
