"""Memory that this process may still allocate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 4 * 2**30
"""Taken where a system tells neither its free memory nor its size."""


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that the machine has free, or that the process's control group leaves, whichever is less.

    `root`: where `proc` and `sys` are.
    """
    return min([_machine(root), *_control_groups(root)])


def _machine(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN


def _control_groups(root: Path) -> Iterator[int]:
    """Memory left by each control group around the process, versions 1 and 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mount = root / "sys/fs/cgroup"
            if not controllers:
                yield from _groups_up(mount, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _groups_up(mount / "memory", path, *names)


def _groups_up(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    group = Path(path.lstrip("/"))
    # In a container the path may be the host's, and only the top of it is there.
    for folder in (mount / group, *(mount / parent for parent in group.parents)):
        with suppress(OSError, ValueError):
            left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            # Pages of files that were read once are given up before memory runs out.
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, left + int(stat.get(reclaimable, 0)))
