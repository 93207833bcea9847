"""How many cores this process may use."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Those of the process where the operating system can say it, else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
