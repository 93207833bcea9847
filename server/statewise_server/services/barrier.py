"""Barrier around the calls of every service: whatever happens inside leaves with a proper code.

grpc.aio turns an exception of a handler, or of a deserializer, into UNKNOWN; so requests are parsed in here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from statewise.errors import InternalError, InvalidRequestError, StatewiseError, UnavailableError
from statewise.status import FIELD_KEY, code_of
from statewise_server.services.wire import parser_for

logger = logging.getLogger(__name__)

MAX_DETAILS = 1000
"""Characters of an error message: it travels in a header, and headers are limited to 8 KiB."""

_HEALTH = "/grpc.health."

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor

Handler = Any
"""grpc.RpcMethodHandler, whose four kinds of behaviour have four types."""


class Barrier(Interceptor):
    """Parses requests, maps errors to codes, refuses new calls while the server drains, reports each end.

    `on_end(method, code name)` is called once for every call.
    """

    def __init__(self, on_end: Callable[[str, str], None]) -> None:
        self.is_draining = False
        self._on_end = on_end
        self._guarded: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], details: Any
    ) -> Handler:
        """Return the method's handler inside the barrier; None for an unknown method (UNIMPLEMENTED)."""
        guarded = self._guarded.get(details.method)
        if guarded is None:
            handler = await continuation(details)
            if handler is None:
                return None
            guarded = self._guarded[details.method] = self._guard(details.method, handler)
        return guarded

    def _guard(self, method: str, handler: Handler) -> Handler:
        run = _runner(handler)

        async def call(raw: Any, context: Any) -> Any:
            code = grpc.StatusCode.OK
            try:
                if self.is_draining and not method.startswith(_HEALTH):
                    raise UnavailableError("the server is stopping; send the request to another, or later")
                return await run(raw, context)
            except grpc.aio.AbortError:
                code = context.code()
                raise
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                failure = _as_failure(error, method, context)
                code = code_of(failure)
                await _abort(context, failure)
            finally:
                self._on_end(method, _name(code))

        return _handler_like(handler, call)


def _runner(handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return the method's behaviour as a coroutine function from raw request(s) to a raw response."""
    parse = parser_for(handler.request_deserializer)
    serialize = handler.response_serializer

    async def run(raw: Any, context: Any) -> Any:
        request = _parse_each(raw, parse) if handler.request_streaming else parse(raw)
        if not handler.response_streaming:
            return serialize(await _behaviour(handler)(request, context))
        result = _behaviour(handler)(request, context)
        if hasattr(result, "__aiter__"):
            async for response in result:
                await context.write(response)
        else:
            await result
        return None

    return run


async def _parse_each(raw: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for message in raw:
        yield parse(message)


def _behaviour(handler: Handler) -> Callable[[Any, Any], Any]:
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    behaviour: Callable[[Any, Any], Any] = next(found for found in behaviours if found is not None)
    return behaviour


def _handler_like(handler: Handler, call: Callable[[Any, Any], Awaitable[Any]]) -> Handler:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    # A single response is serialized inside the barrier; streamed ones by `context.write`, inside it too.
    serialize = handler.response_serializer if handler.response_streaming else None
    return make(call, response_serializer=serialize)


def _as_failure(error: Exception, method: str, context: Any) -> StatewiseError:
    if isinstance(error, StatewiseError):
        return error
    if context.cancelled():
        # The caller has gone, and writing to it failed for that reason.
        raise asyncio.CancelledError from error
    reference = secrets.token_hex(6)
    logger.error("%s failed, reference %s", method, reference, exc_info=sys.exc_info())
    return InternalError(f"the server failed; its log has the reason under reference {reference}")


async def _abort(context: Any, error: StatewiseError) -> NoReturn:
    field = error.field if isinstance(error, InvalidRequestError) else None
    details = str(error)
    if len(details) > MAX_DETAILS:
        details = details[: MAX_DETAILS - 1] + "…"
    await context.abort(code_of(error), details, ((FIELD_KEY, field or ""),))
    raise AssertionError("abort returned")


def _name(code: Any) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else str(code)
