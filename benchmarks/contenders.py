"""Ways to decode the same model greedily; each gives output tokens per second for a number of streams.

Every contender runs in a process of its own (`python -m benchmarks.contenders NAME MODEL`), loads once, and then
answers one JSON line for each line `streams tokens` that it reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.models import REPOSITORY
from statewise.bundle import Bundle, find_bundle, open_bundle

MAX_STREAMS = 64
PROMPT_TOKEN = 3

Measure = Callable[[int, int], float]
"""(streams, tokens per stream) -> seconds."""


def bare_loop(bundle: Bundle) -> Measure:
    """The step graph in a bare loop over run_with_iobinding: everything bound beforehand, two state buffers."""
    from server.runtime.sessions import create_session

    session = create_session(bundle.path(bundle.manifest.variants["cpu-float32"].step))

    def measure(streams: int, tokens: int) -> float:
        items = np.full((streams, 1), PROMPT_TOKEN)
        chosen = np.empty(streams, np.int64)
        fixed = _greedy_inputs(streams) | {"items": items, "lengths": np.ones(streams, np.int64)}
        specs = bundle.manifest.model.state
        buffers = [{s.name: np.zeros((streams, *s.row_shape()), np.float32) for s in specs} for _ in range(2)]
        bindings = []
        for turn in range(2):
            binding = session.io_binding()
            for name, value in fixed.items():
                _bind(binding.bind_input, name, value)
            for spec in specs:
                _bind(binding.bind_input, f"state.{spec.name}", buffers[turn][spec.name])
                _bind(binding.bind_output, f"new_state.{spec.name}", buffers[1 - turn][spec.name])
            _bind(binding.bind_output, "next_items", chosen)
            bindings.append(binding)
        started = time.perf_counter()
        for step in range(tokens):
            session.run_with_iobinding(bindings[step % 2])
            items[:, 0] = chosen
        return time.perf_counter() - started

    return measure


def bare_decode(bundle: Bundle) -> Measure:
    """The decode graph, 16 steps to a run, in the same bare loop."""
    from server.runtime.sessions import create_session

    name = bundle.manifest.variants["cpu-float32"].decode
    assert name is not None
    session = create_session(bundle.path(name))

    def measure(streams: int, tokens: int) -> float:
        steps = 16
        feeds = _greedy_inputs(streams) | {"items": np.full((streams, 1), PROMPT_TOKEN), "steps": np.array(steps)}
        feeds["sampling.uniforms"] = np.zeros((streams, steps), np.float32)
        state = {
            f"state.{s.name}": np.zeros((streams, *s.row_shape()), np.float32) for s in bundle.manifest.model.state
        }
        names = ["next_items", *(f"new_{name}" for name in state)]
        started = time.perf_counter()
        for _ in range(tokens // steps):
            chosen, *new = session.run(names, feeds | state)
            feeds["items"] = chosen[-1][:, None]
            state = dict(zip(state, new, strict=True))
        return time.perf_counter() - started

    return measure


def eager(bundle: Bundle) -> Measure:
    """PyTorch, one eager step after another, argmax in PyTorch."""
    import torch

    from training.checkpoint import load_checkpoint
    from training.state import zero_state

    checkpoint = load_checkpoint(bundle.folder)
    checkpoint.module.eval()

    @torch.inference_mode()
    def measure(streams: int, tokens: int) -> float:
        items, lengths = torch.full((streams, 1), PROMPT_TOKEN), torch.ones(streams, dtype=torch.int64)
        state = zero_state(bundle.manifest.model, streams, 0)
        started = time.perf_counter()
        for _ in range(tokens):
            hidden, state = checkpoint.module(items, lengths, state)
            items = checkpoint.module.head(hidden[:, -1]).argmax(dim=1, keepdim=True)  # type: ignore[operator]
        return time.perf_counter() - started

    return measure


def engine(bundle: Bundle) -> Measure:
    """The engine in process: one request per stream, submitted together."""
    from server.engine import Engine, EngineSettings, GenerationRequest
    from server.engine.queue_channel import run_all
    from statewise.sampling import GREEDY

    served = Engine.load(bundle, "cpu-float32", EngineSettings(max_rows=MAX_STREAMS))
    served.start()

    def measure(streams: int, tokens: int) -> float:
        requests = [GenerationRequest(np.array([PROMPT_TOKEN]), GREEDY, tokens) for _ in range(streams)]
        started = time.perf_counter()
        outputs = run_all(served, requests)
        elapsed = time.perf_counter() - started
        if any(len(output.items) != tokens for output in outputs):
            raise SystemExit("the engine did not give every token")
        return elapsed

    return measure


def grpc(bundle: Bundle) -> Measure:
    """`statewise serve` in another process, read by the asyncio client in this one, on the same cores."""
    from statewise import AsyncClient

    address = _start_server()

    async def read(client: AsyncClient, tokens: int) -> int:
        stream = client.stream(bundle.manifest.name, [PROMPT_TOKEN], max_tokens=tokens, temperature=0.0)
        return sum([len(chunk.tokens) async for chunk in stream])

    async def read_all(streams: int, tokens: int) -> float:
        async with AsyncClient(address) as client:
            await client.models()  # connect
            started = time.perf_counter()
            counts = await asyncio.gather(*(read(client, tokens) for _ in range(streams)))
            elapsed = time.perf_counter() - started
        if any(count != tokens for count in counts):
            raise SystemExit(f"the server did not give every token: {counts}")
        return elapsed

    return lambda streams, tokens: asyncio.run(read_all(streams, tokens))


CONTENDERS = {"bare loop": bare_loop, "bare decode": bare_decode, "eager": eager, "engine": engine, "grpc": grpc}

_server: subprocess.Popen[bytes] | None = None


def _start_server() -> str:
    global _server
    ready = Path(tempfile.mkdtemp()) / "ready"
    command = [sys.executable, "-m", "statewise", "serve", "--models", str(REPOSITORY), "--port", "0"]
    command += ["--ready-file", str(ready), "--max-rows", str(MAX_STREAMS)]
    _server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (ready.exists() and ready.read_text()):
        if _server.poll() is not None:
            raise SystemExit(f"the server ended with {_server.returncode}")
        time.sleep(0.05)
    return ready.read_text().strip()


def _greedy_inputs(streams: int) -> dict[str, np.ndarray]:
    """The sampler's inputs for greedy rows."""
    return {
        "sampling.parameters": np.tile(np.array([0, 1, 0, 1, 0, 0], np.float32), (streams, 1)),
        "sampling.top_k": np.zeros(streams, np.int64),
        "sampling.adjust_ids": np.zeros((streams, 0), np.int64),
        "sampling.adjust_values": np.zeros((streams, 0, 3), np.float32),
        "sampling.num_top": np.array(-1),
        "sampling.uniforms": np.zeros((streams, 1), np.float32),
    }


def _bind(bind: Callable[..., None], name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Answer measurements until standard input ends."""
    name, model = sys.argv[1:]
    bundle = open_bundle(find_bundle(REPOSITORY, model), check_hashes=False)
    measure = CONTENDERS[name](bundle)
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            streams, tokens = map(int, line.split())
            rate = streams * tokens / measure(streams, tokens)
            # The server's memory, not its client's.
            resident = _resident_mib(_server.pid if _server else os.getpid())
            print(json.dumps({"tokens_per_second": rate, "resident_mib": resident}), flush=True)
    finally:
        if _server is not None:
            _server.terminate()
            _server.wait()


if __name__ == "__main__":
    main()
