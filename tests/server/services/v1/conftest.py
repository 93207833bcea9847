"""One server for the tests of the services."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise_server.app import Application
from tests.serving import running_server

ENGINE = {
    "intra_op_threads": 1,
    "max_rows": 2,
    "max_waiting": 1,
    "max_tokens": 500_000,
    "max_prompt_tokens": 64,
    "max_stop_strings": 2,
}


@pytest.fixture(scope="package")
def server() -> Iterator[Application]:
    """Run a server with room for two streams and one that waits."""
    with running_server(engine=ENGINE, max_message_bytes=1 << 20, stream_interval_ms=0) as application:
        yield application


@pytest.fixture
def channel(server: Application) -> Iterator[grpc.Channel]:
    """Open a plain gRPC channel to the server."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> GenerationServiceStub:
    """Return the generated stub, without the client's help."""
    return GenerationServiceStub(channel)
