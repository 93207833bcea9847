"""The one table between Statewise's errors and gRPC's codes: services read it forwards, clients backwards."""

import grpc

from statewise.errors import (
    BundleError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)

CODES: dict[type[StatewiseError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CancelledError: grpc.StatusCode.CANCELLED,
    BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    DataLossError: grpc.StatusCode.DATA_LOSS,
    InternalError: grpc.StatusCode.INTERNAL,
}

_ERRORS = {code: error for error, code in CODES.items()}

FIELD_KEY = "statewise-field"
"""Trailing metadata of every error that a Statewise server raises: the field at fault, or nothing.

Its absence tells a client that the error came from the connection, not from the server.
"""


def code_of(error: StatewiseError) -> grpc.StatusCode:
    """Return the gRPC code of an error: its own kind's, its nearest ancestor's, or INTERNAL."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


def error_from(code: grpc.StatusCode, message: str, field: str | None = None) -> StatewiseError:
    """Return the error that a gRPC code stands for; a code that is not in the table gives InternalError."""
    kind = _ERRORS.get(code, InternalError)
    if kind is InvalidRequestError:
        return InvalidRequestError(message.removeprefix(f"{field}: "), field=field or None)
    return kind(message if code in _ERRORS else f"{message} ({code.name})")
