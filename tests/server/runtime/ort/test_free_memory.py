"""What a process may still take, read from trees like Linux's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from statewise_server.runtime.ort.free_memory import free_memory

MIB = 2**20
MEMINFO = "MemTotal: 9000 kB\nMemFree: 5 kB\nMemAvailable:  8192 kB\n"


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": MEMINFO, "proc/self/cgroup": groups} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: str, usage: int, reclaimable: int) -> dict[str, str]:
    """The files of a version 2 group."""
    stat = f"anon 7\ninactive_file {reclaimable}\n"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": str(usage), f"{folder}/memory.stat": stat}


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    """The kernel's own estimate counts, not the pages that are unused."""
    assert free_memory(tree(tmp_path, "", {})) == 8 * MIB


def test_the_tightest_group_around_the_process_decides(tmp_path: Path) -> None:
    """A limit of an outer group holds for the inner one; pages of files read once do not count as used."""
    mount = "sys/fs/cgroup"
    files = group(f"{mount}/pod/box", "max", 4 * MIB, 0) | group(f"{mount}/pod", str(6 * MIB), 5 * MIB, 2 * MIB)

    assert free_memory(tree(tmp_path, "0::/pod/box\n", files)) == 3 * MIB


def test_version_1_in_a_container(tmp_path: Path) -> None:
    """The path is the host's, and the group's files lie at the top of the mount."""
    folder = "sys/fs/cgroup/memory"
    files = {
        f"{folder}/memory.limit_in_bytes": str(5 * MIB),
        f"{folder}/memory.usage_in_bytes": str(4 * MIB),
        f"{folder}/memory.stat": "cache 1\n",
    }

    assert free_memory(tree(tmp_path, "4:memory:/docker/1234\n3:cpu:/\n", files)) == MIB


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_a_group_without_a_limit_changes_nothing(tmp_path: Path, limit: str) -> None:
    """Both spellings of "no limit" are understood."""
    assert free_memory(tree(tmp_path, "0::/\n", group("sys/fs/cgroup", limit, MIB, 0))) == 8 * MIB


def test_a_full_group_leaves_nothing(tmp_path: Path) -> None:
    """Use above the limit is no negative number."""
    assert free_memory(tree(tmp_path, "0::/\n", group("sys/fs/cgroup", "10", 20, 0))) == 0


def test_elsewhere_it_is_a_number_all_the_same(tmp_path: Path) -> None:
    """Without Linux's files there is an estimate, not an error."""
    assert free_memory(tmp_path) > MIB
