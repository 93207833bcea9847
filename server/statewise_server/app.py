"""The server as a whole: repository, services, health and metrics, from start to SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from rich.console import Console
from rich.table import Table

from statewise.errors import ConfigError
from statewise.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from statewise.v1.prediction_pb2_grpc import add_PredictionServiceServicer_to_server
from statewise_server.config import ServerSettings
from statewise_server.local.forecasting import ForecastLimits
from statewise_server.metrics import ServerMetrics
from statewise_server.repository.repository import ModelEntry, Repository
from statewise_server.services.barrier import Barrier
from statewise_server.services.v1 import generation, prediction
from statewise_server.services.v1.generation import GenerationService, StreamLimits
from statewise_server.services.v1.prediction import PredictionService

logger = logging.getLogger(__name__)

_SERVICES = (generation.SERVICE_NAME, prediction.SERVICE_NAME)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

SWITCH_INTERVAL_SECONDS = 0.0005

_HEALTH_INTERVAL = 1.0
"""Seconds between two looks at the engines."""

_LAST_WRITES = 2.0
"""Seconds in which streams that have ended may still be read, before connections close."""


class Application:
    """One server process without its signals, so that tests can run it too."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.repository = Repository(settings.models, settings.engine, settings.variant)
        self.metrics = ServerMetrics(self.repository.entries)
        self.barrier = Barrier(self.metrics.call_ended)
        self.port = 0
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # set where grpc.aio exists
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Return host:port, as a client dials it."""
        host = self.settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Listen, with health NOT_SERVING and every model loading. Raises ConfigError for a taken port."""
        server = grpc.aio.server(interceptors=[self.barrier], options=_options(self.settings))
        limits = StreamLimits(
            self.settings.stream_interval_ms / 1000,
            self.settings.max_messages_per_second,
            self.settings.max_buffered_items,
            self.settings.max_streams,
        )
        add_GenerationServiceServicer_to_server(  # type: ignore[no-untyped-call] # generated
            GenerationService(self.repository, limits, self.metrics), server
        )
        forecast_limits = ForecastLimits(self.settings.max_paths, self.settings.max_forecast_numbers)
        add_PredictionServiceServicer_to_server(  # type: ignore[no-untyped-call] # generated
            PredictionService(self.repository, forecast_limits), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self._set_health(_NOT_SERVING)
        self._listen(server)
        await server.start()
        self._server = server

    async def load(self) -> None:
        """Load every model, beside the event loop, and say how each one fared through health."""
        await asyncio.to_thread(self.repository.load_all)
        await self.check_health()

    async def check_health(self) -> None:
        """Report SERVING while at least one model is ready and all that is loaded works."""
        parts = [part for entry in self.repository.entries() for part in entry.parts]
        is_serving = bool(parts) and all(part.is_healthy for part in parts)
        await self._set_health(_SERVING if is_serving else _NOT_SERVING)

    async def refuse_new_calls(self) -> None:
        """Answer new calls with UNAVAILABLE and health with NOT_SERVING, from now on."""
        self.barrier.is_draining = True
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, let what runs complete within `grace` seconds, and close."""
        await self.refuse_new_calls()
        await asyncio.to_thread(self.repository.close, grace)
        if self._server is not None:
            await self._server.stop(min(grace, _LAST_WRITES))

    def _listen(self, server: grpc.aio.Server) -> None:
        self.port = self.settings.port
        try:
            self.port = server.add_insecure_port(self.address)
            if self.settings.metrics_port:
                self.metrics.serve(self.settings.host, self.settings.metrics_port)
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"cannot listen at {self.address} (metrics_port: {self.settings.metrics_port}): "
                "the port is taken, or the host is none of this machine's; --port 0 takes a free one"
            ) from error

    async def _set_health(self, status: int) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, status)


REFUSALS_PER_CONNECTION = 8192
"""Calls beyond `max_streams` that one connection may have open, each to be told that there are too many."""


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    most_calls = settings.max_streams + REFUSALS_PER_CONNECTION
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Per connection: a flood of streams that are opened and reset stays bounded. HTTP/2 refuses those beyond it
        # without a reason, so that there is room for calls that are refused with one.
        ("grpc.max_concurrent_streams", most_calls),
        # Calls that the event loop has not taken yet; gRPC drops those beyond, from 1000 on, as CANCELLED.
        ("grpc.server.max_pending_requests", most_calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * most_calls),
        # Two servers on one port would share its connections silently.
        ("grpc.so_reuseport", 0),
        # A peer that has vanished is found out after 30 + 10 seconds, and its rows are freed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def run(settings: ServerSettings, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError where there is nothing to serve, or nowhere."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # An engine that comes back from a run must not wait long for the event loop to give up the interpreter.
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    application = Application(settings)
    if not application.repository.entries():
        raise ConfigError(
            f"models: {settings.models} holds no model (expected <model>/<version>/manifest.json); "
            "`statewise export` puts one there"
        )
    asyncio.run(_run(application, ready_file))


async def _run(application: Application, ready_file: Path | None) -> None:
    stop = _stop_event()
    await application.start()
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(application.load())
    await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        await loading
        _announce(application, ready_file)
        await _watch(application, stop)
    logger.info("stopping: running streams may take %g s", application.settings.grace_seconds)
    await application.stop(application.settings.grace_seconds)
    await asyncio.gather(stopping, loading)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)


def _stop_event() -> asyncio.Event:
    """Return the event that the first SIGTERM or SIGINT sets; the second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    return stop


async def _watch(application: Application, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _HEALTH_INTERVAL)
        await application.check_health()


def _announce(application: Application, ready_file: Path | None) -> None:
    console = Console()
    console.print(_table(application.repository.entries()))
    print(f"ready at {application.address}", flush=True)
    if ready_file is not None:
        # Renamed into place, so that a reader never sees half an address.
        partial = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        partial.write_text(application.address)
        partial.replace(ready_file)


def _table(entries: list[ModelEntry]) -> Table:
    table = Table("model", "version", "state", "variant", "remark", title="Models")
    for entry in entries:
        style = "green" if entry.state == "ready" else "red"
        remark = entry.reason or entry.describe()
        table.add_row(entry.name, str(entry.version), f"[{style}]{entry.state}[/]", entry.variant or "", remark)
    return table
