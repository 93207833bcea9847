"""The server as a whole: health, draining, slow readers, limits and metrics, over real connections."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from statewise.client import Client
from statewise.errors import ConfigError, OverloadedError, UnavailableError
from statewise_server.app import Application
from statewise_server.config import ServerSettings
from tests.serving import model_repository, running_server

SERVICE = "statewise.v1.GenerationService"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_health_follows_loading_and_stopping() -> None:
    """Health is NOT_SERVING until the models are loaded, SERVING then, and NOT_SERVING again while it drains."""

    async def run() -> list[tuple[int, int]]:
        application = Application(ServerSettings(models=model_repository(), port=0))
        await application.start()
        seen = []

        async def look() -> None:
            ask = asyncio.to_thread
            seen.append((await ask(health, application.address), await ask(health, application.address, SERVICE)))

        await look()
        await application.load()
        await look()
        await application.refuse_new_calls()
        await look()
        await application.stop(0)
        return seen

    assert asyncio.run(run()) == [(NOT_SERVING,) * 2, (SERVING,) * 2, (NOT_SERVING,) * 2]


def test_reflection_lists_the_services() -> None:
    """Tools like grpcurl find the services without the proto files."""
    with running_server() as server, grpc.insecure_channel(server.address) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (response,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))

    names = {service.name for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_slow_reader_is_cut_off_and_others_are_not() -> None:
    """Who does not read gets what fitted and RESOURCE_EXHAUSTED; its row is free while it still does not read."""
    with (
        running_server(max_buffered_items=2000, stream_interval_ms=0) as server,
        Client(server.address) as client,
    ):
        engine = server.repository.get("text")
        slow = client.stream("text", "a", max_tokens=60_000, ignore_end_token=True, logprobs=20)
        next(slow)
        deadline = time.monotonic() + 30
        while engine.num_running and time.monotonic() < deadline:
            other = client.generate("text", "b", max_tokens=50, ignore_end_token=True)
            assert len(other.tokens) == 50
        assert engine.num_running == 0

        with pytest.raises(OverloadedError, match="too slowly"):
            list(slow)


def test_streams_are_limited_over_all_models() -> None:
    """Past max_streams a call is refused at once; an ended stream makes room."""
    with running_server(max_streams=1) as server, Client(server.address) as client:
        with client.stream("text", "a", max_tokens=60_000, ignore_end_token=True) as stream:
            next(stream)
            with pytest.raises(OverloadedError, match="1 streams are open"):
                client.generate("sum", [[1.0, 2.0]])
        deadline = time.monotonic() + 10
        while True:
            try:
                assert client.generate("sum", [[1.0, 2.0]], max_tokens=2).usage.completion_tokens == 2
                break
            except OverloadedError:
                assert time.monotonic() < deadline


def test_metrics_count_calls_and_items() -> None:
    """A scrape shows what was served, by code, and that no row is left in use."""
    port = free_port()
    with running_server(metrics_port=port) as server, Client(server.address) as client:
        client.generate("text", "a", max_tokens=5, ignore_end_token=True)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            page = response.read().decode()

    assert f'statewise_calls_total{{code="OK",method="/{SERVICE}/Generate"}} 1.0' in page
    assert 'statewise_items_total{model="text"} 5.0' in page
    assert 'statewise_time_to_first_token_seconds_count{model="text"} 1.0' in page
    assert 'statewise_rows_in_use{model="text"} 0.0' in page
    assert 'statewise_cached_prompt_items_total{model="text"} 0.0' in page
    assert 'statewise_prefix_bytes{model="text"} 0.0' in page
    assert 'statewise_prefix_evictions_total{model="text"} 0.0' in page
    assert 'statewise_state_budget_bytes{model="text"} 6.4e+07' in page
    assert 'statewise_state_bytes{model="text"} 2048.0' in page
    assert 'statewise_state_capacity{model="text"} 0.0' in page


def test_taken_port_is_refused_readably() -> None:
    """Two servers never share a port silently."""
    with running_server() as server:
        settings = ServerSettings(models=model_repository(), port=server.port)

        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{server.port}"):
            asyncio.run(Application(settings).start())


def start(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], Path]:
    """Start `statewise serve` in a process of its own; returns it and its ready file."""
    ready = folder / "ready"
    command = [sys.executable, "-c", "from statewise.cli import main; main()", "serve", "--port", "0"]
    command += ["--models", str(model_repository()), "--ready-file", str(ready), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), ready


def wait_for(process: subprocess.Popen[Any], ready: Path) -> str:
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return ready.read_text()


def test_sigterm_lets_a_stream_complete_and_refuses_new_calls(tmp_path: Path) -> None:
    """After SIGTERM new calls are UNAVAILABLE, the running stream ends as it should, and the exit code is 0."""
    process, ready = start(tmp_path, "--grace-seconds", "30")
    with Client(wait_for(process, ready)) as client:
        stream = client.stream("text", "a", max_tokens=20_000, ignore_end_token=True)
        chunks = [next(stream)]

        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(UnavailableError):
            client.generate("text", "b", max_tokens=1)
        chunks += stream

    output, _ = process.communicate(timeout=30)
    assert (chunks[-1].finish_reason, sum(len(chunk.tokens) for chunk in chunks)) == ("length", 20_000)
    assert process.returncode == 0, output
    assert "ready at 127.0.0.1:" in output
    assert "16 rows, 2.05 kB state of" in output
    assert "broken/1: refused: step.cpu-float32.onnx: changed since it was written" in output
    assert not ready.exists()


def test_sigterm_ends_a_stream_that_outlasts_the_grace(tmp_path: Path) -> None:
    """A stream that goes on past the grace fails with UNAVAILABLE, and the exit code is still 0."""
    process, ready = start(tmp_path, "--grace-seconds", "0.2", "--max-tokens", "100000000")
    with Client(wait_for(process, ready)) as client:
        stream = client.stream("text", "a", max_tokens=100_000_000, ignore_end_token=True)
        next(stream)

        process.send_signal(signal.SIGTERM)
        with pytest.raises(UnavailableError):
            list(stream)

    assert process.wait(timeout=30) == 0


def test_sigterm_while_loading_exits_cleanly(tmp_path: Path) -> None:
    """A server that is told to stop before it is ready exits with 0 and never says that it is."""
    process, ready = start(tmp_path)
    assert process.stdout is not None
    # The first line of the log comes from the first model that is being loaded.
    line = process.stdout.readline()

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 0, line + output
    assert not ready.exists()
    assert "Traceback" not in output
