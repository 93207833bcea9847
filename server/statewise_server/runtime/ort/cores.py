"""How many cores this process may use, and how many threads a run takes."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Those of the process where the operating system can say it, else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(wanted: int, limit: int | None = None) -> int:
    """Threads of one run on the CPU: as many as are wanted, every core for 0, up to a limit."""
    chosen = wanted or num_cores()
    return chosen if limit is None else min(chosen, limit)
