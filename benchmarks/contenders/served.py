"""Contenders for the engine: in process, and through gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.process import Subject, answer
from benchmarks.models import vocabulary_size
from benchmarks.workloads import Workload
from statewise import AsyncClient
from statewise.bundles.reader import open_bundle
from statewise.rules.sampling import GREEDY
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.queue_channel import run_all

NUM_THREADS = 2


class InProcess(Subject):
    """Engine in this process; all requests of a workload are submitted together."""

    def __init__(self, folder: str, variant: str) -> None:
        self._bundle = open_bundle(Path(folder), check_hashes=False)
        self._variant = variant
        self._engine: Engine | None = None
        self._vocabulary_size = vocabulary_size(self._bundle)

    def measure(self, workload: Workload) -> float:
        """Seconds from the first request's submission to the last one's end."""
        engine = self._with_rows(workload.max_running)
        requests = requests_of(workload, self._vocabulary_size)
        started = time.perf_counter()
        outputs = run_all(engine, requests)
        elapsed = time.perf_counter() - started
        check_complete(workload, [len(output.items) for output in outputs])
        return elapsed

    def close(self) -> None:
        """End the engine's thread."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _with_rows(self, max_rows: int) -> Engine:
        if self._engine is None or self._engine.memory.max_rows != max_rows:
            self.close()
            settings = EngineSettings(max_rows=max_rows, intra_op_threads=NUM_THREADS)
            self._engine = Engine.load(self._bundle, self._variant, settings)
            self._engine.start()
        return self._engine


class ThroughGRPC(Subject):
    """`statewise serve` in another process, read by the asyncio client in this one, on the same cores."""

    def __init__(self, folder: str, variant: str) -> None:
        self._bundle = open_bundle(Path(folder), check_hashes=False)
        self._variant = variant
        self._server: subprocess.Popen[bytes] | None = None
        self._max_rows = 0
        self._address = ""
        self._vocabulary_size = vocabulary_size(self._bundle)

    def measure(self, workload: Workload) -> float:
        """Seconds from the first call to the last stream's end, with the connection already open."""
        if self._max_rows != workload.max_running:
            self.close()
            self._start(workload.max_running)
        return asyncio.run(self._read_all(workload))

    @property
    def pid(self) -> int:
        """Id of the server's process, not the client's."""
        assert self._server is not None
        return self._server.pid

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None

    def _start(self, max_rows: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            ready = Path(scratch) / "ready"
            command = [sys.executable, "-m", "statewise", "serve", "--models", str(self._bundle.folder.parents[1])]
            command += ["--port", "0", "--variant", self._variant, "--threads", str(NUM_THREADS)]
            command += ["--max-rows", str(max_rows), "--log-level", "error", "--ready-file", str(ready)]
            self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while not (ready.exists() and ready.read_text()):
                if self._server.poll() is not None:
                    raise RuntimeError(f"the server ended with {self._server.returncode}")
                time.sleep(0.05)
            self._address = ready.read_text().strip()
        self._max_rows = max_rows

    async def _read_all(self, workload: Workload) -> float:
        prompts = workload.prompts(self._vocabulary_size)
        async with AsyncClient(self._address) as client:
            await client.models()  # connect
            started = time.perf_counter()
            counts = await asyncio.gather(*map(self._read, [client] * len(prompts), prompts, workload.output_lengths))
            elapsed = time.perf_counter() - started
        check_complete(workload, counts)
        return elapsed

    async def _read(self, client: AsyncClient, prompt: NDArray[np.int64], num_tokens: int) -> int:
        stream = client.stream(self._bundle.manifest.name, prompt.tolist(), max_tokens=num_tokens, temperature=0.0)
        return sum([len(chunk.tokens) async for chunk in stream])


def requests_of(workload: Workload, vocabulary_size: int) -> list[GenerationRequest]:
    """Requests of the workload for the engine: greedy, without an end token."""
    prompts = workload.prompts(vocabulary_size)
    return [
        GenerationRequest(prompt, GREEDY, num_tokens)
        for prompt, num_tokens in zip(prompts, workload.output_lengths, strict=True)
    ]


def check_complete(workload: Workload, counts: Sequence[int]) -> None:
    """Raise RuntimeError if a request lacks some of its tokens."""
    if tuple(counts) != workload.output_lengths:
        raise RuntimeError(f"{workload.name}: tokens are missing: {counts} of {workload.output_lengths}")


KINDS = {"engine": InProcess, "gRPC": ThroughGRPC}

if __name__ == "__main__":
    answer(KINDS[sys.argv[1]], *sys.argv[2:])
