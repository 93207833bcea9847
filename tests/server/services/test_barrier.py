"""The barrier around every method: nothing leaves it as UNKNOWN."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from statewise.errors import DataLossError, InvalidRequestError
from statewise.status import FIELD_KEY
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    GenerationServiceStub,
    add_GenerationServiceServicer_to_server,
)
from statewise_server.services.barrier import MAX_DETAILS, Barrier


class Failing(GenerationServiceServicer):
    """Fails as it is told, in each way that a method can be written."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802 # the rpc's name
        raise self.error

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return "not a message"

    async def Generate(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(text="first")
        raise self.error


def call(error: Exception, method: str, *, drain: bool = False) -> tuple[grpc.aio.AioRpcError, list[Any]]:
    """Call a method that fails; returns the client's error and what the barrier reported."""
    ends: list[Any] = []

    async def run() -> grpc.aio.AioRpcError:
        barrier = Barrier(lambda *end: ends.append(end))
        server = grpc.aio.server(interceptors=[barrier])
        add_GenerationServiceServicer_to_server(Failing(error), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        barrier.is_draining = drain
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = GenerationServiceStub(channel)
            request = getattr(pb, f"{method}Request")()
            pending = stub.Generate(request) if method == "Generate" else getattr(stub, method)(request)
            if method == "Generate":
                assert (await pending.read()).text == "first"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (pending.read() if method == "Generate" else pending)
        await server.stop(0)
        return caught.value

    return asyncio.run(asyncio.wait_for(run(), timeout=20)), ends


@pytest.mark.parametrize("method", ["GetModel", "Generate"])
def test_expected_error_has_its_code_and_message(method: str) -> None:
    """An error of Statewise's own tree leaves with its code, in unary and streaming methods."""
    error, ends = call(DataLossError("the model gave NaN"), method)

    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "the model gave NaN")
    assert ends == [(f"/statewise.v1.GenerationService/{method}", "DATA_LOSS")]


@pytest.mark.parametrize("method", ["GetModel", "Generate"])
def test_unexpected_error_is_internal_with_a_reference_to_the_log(method: str, caplog: Any) -> None:
    """A fault of ours is INTERNAL; its text stays in the log, under a reference that the caller is given."""
    with caplog.at_level(logging.ERROR):
        error, _ = call(KeyError("secret"), method)

    reference = (error.details() or "").rpartition(" ")[2]
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert any(reference in record.message and record.exc_info for record in caplog.records)


def test_response_that_cannot_be_serialized_is_internal() -> None:
    """Even a method that returns nonsense does not end as UNKNOWN."""
    error, _ = call(ValueError(), "ListModels")

    assert error.code() == grpc.StatusCode.INTERNAL


def test_field_at_fault_travels_beside_the_message() -> None:
    """Clients need not parse the message for the field."""
    error, _ = call(InvalidRequestError("is bad", field="stop.max_tokens"), "GetModel")

    assert dict(error.trailing_metadata())[FIELD_KEY] == "stop.max_tokens"


def test_long_message_is_cut() -> None:
    """A message that quotes a huge value still fits into a header."""
    error, _ = call(InvalidRequestError("x" * 100_000), "GetModel")

    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(error.details() or "") == MAX_DETAILS


def test_draining_server_refuses_new_calls() -> None:
    """While the server stops, new calls are UNAVAILABLE, so that callers go elsewhere."""
    error, _ = call(ValueError(), "GetModel", drain=True)

    assert (error.code(), "stopping" in (error.details() or "")) == (grpc.StatusCode.UNAVAILABLE, True)
