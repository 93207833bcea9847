"""Nothing grows: memory, objects, tasks, threads, files and rows of a real server under requests of random shapes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from statewise import AsyncClient
from tests.end_to_end.load import send
from tests.end_to_end.processes import ServerProcess, serving

MODELS = ("gru-text", "transformer")
# Little memory for prefixes: the warm-up fills it.
FLAGS = ("--max-rows", "8", "--max-waiting", "16", "--threads", "1", "--prefix-memory", "200kB")

LIMITS = {"resident": (8192.0, 256.0), "heap": (256.0, 64.0), "blocks": (1000.0, 500.0), "objects": (100.0, 50.0)}
"""Growth that is no leak: as the noise of a run, and per 1,000 requests.

The resident size (KiB) moves by whole arenas; the heap (KiB) is what malloc has given out; blocks are of Python's own
small memory, objects those that its collector knows.
"""


@dataclass
class Sample:
    """What a server holds while no request is open."""

    num_requests: int
    resident: int
    heap: int
    threads: int
    files: int
    tasks: int
    blocks: int
    objects: int
    types: dict[str, int]


@dataclass
class Run:
    """Samples of one server, the first after the warm-up."""

    samples: list[Sample] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)

    def growth(self, name: str) -> float:
        """Slope of a least-squares line through the samples, per 1,000 requests."""
        at = [sample.num_requests for sample in self.samples]
        return 1000 * float(np.polyfit(at, [getattr(sample, name) for sample in self.samples], 1)[0])

    def leaks(self) -> dict[str, str]:
        """What has grown, by name, with the figures."""
        first, last = self.samples[0], self.samples[-1]
        found = {
            name: f"{getattr(first, name)} after the warm-up, {getattr(last, name)} at the end"
            for name in ("tasks", "threads", "files")
            if getattr(last, name) > getattr(first, name)
        }
        thousands = (last.num_requests - first.num_requests) / 1000
        types = Counter(last.types) - Counter(first.types)
        for name, (noise, per_thousand) in LIMITS.items():
            if self.growth(name) * thousands > noise + per_thousand * thousands:
                found[name] = f"{self.growth(name):+.0f} per 1,000 requests; more of {types.most_common(5)}"
        return found

    def __str__(self) -> str:
        growth = ", ".join(f"{name} {self.growth(name):+.1f}" for name in LIMITS)
        lines = [
            f"{s.num_requests}: {s.resident} KiB resident, {s.heap} KiB heap, {s.objects} objects" for s in self.samples
        ]
        return "\n".join([f"per 1,000 requests: {growth}", str(dict(self.fates)), *lines])


def look(server: ServerProcess, num_requests: int, answer: Path) -> Sample:
    """Wait until no request is open; then count."""
    server.wait_until_idle()
    assert server.process.stdin is not None
    server.process.stdin.write(f"{answer}\n")
    server.process.stdin.flush()
    wait_for(answer)
    inside = json.loads(answer.read_text())
    types = inside["types"]
    process = Path(f"/proc/{server.process.pid}")
    return Sample(
        num_requests,
        resident=round(1024 * server.resident_mib()),
        threads=len(list((process / "task").iterdir())),
        files=len(list((process / "fd").iterdir())),
        heap=inside["heap"],
        blocks=inside["blocks"],
        tasks=types.get("Task", 0),
        objects=sum(types.values()),
        types=types,
    )


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(
    repository: Path,
    scratch: Path,
    *,
    warm_up: int,
    rounds: int,
    requests: int,
    models: tuple[str, ...] = MODELS,
    leaking: bool = False,
) -> Run:
    """Serve so many rounds of random requests after a warm-up, and look after each."""
    program = ("-m", "tests.end_to_end.probed_server", *(["--leaking"] if leaking else []))
    result = Run()

    async def drive(server: ServerProcess) -> None:
        async with AsyncClient(server.address, timeout=60) as client:
            for number in range(rounds + 1):
                result.fates += await send(client, models, requests if number else warm_up, seed=number)
                done = number * requests
                result.samples.append(await asyncio.to_thread(look, server, done, scratch / f"{number}.json"))

    with serving(repository, scratch, *FLAGS, program=program) as server:
        asyncio.run(drive(server))
    print(result)
    return result


def test_nothing_grows_over_some_hundred_requests(repository: Path, tmp_path: Path) -> None:
    """A server of two families is after a mixed load where it was before."""
    # The warm-up has seen every number of rows, so that all bindings that stay from run to run are there.
    done = run(repository, tmp_path, warm_up=1200, rounds=5, requests=80)

    assert done.leaks() == {}
    assert done.fates.keys() >= {"served", "cancelled", "InvalidRequestError", "NotFoundError", "DeadlineExceededError"}


def test_a_leaking_server_is_found_out(repository: Path, tmp_path: Path) -> None:
    """The control: a server that keeps its requests, and now and then a task, a thread and a file, is told by all."""
    found = run(repository, tmp_path, warm_up=250, rounds=5, requests=80, leaking=True).leaks()

    assert found.keys() == {*LIMITS, "tasks", "threads", "files"}


@pytest.mark.leak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_grows_over_ten_thousand_requests(repository: Path, tmp_path: Path, model: str) -> None:
    """The long run of `make test-leak`, which prints its figures."""
    done = run(repository, tmp_path, warm_up=2000, rounds=20, requests=500, models=(model,))

    assert done.leaks() == {}
