"""The table between errors and codes."""

from __future__ import annotations

import grpc
import pytest

from statewise import errors
from statewise.status import CODES, code_of, error_from


@pytest.mark.parametrize("kind", CODES)
def test_error_survives_the_wire(kind: type[errors.StatewiseError]) -> None:
    """An error's code leads back to the same error, with its message."""
    back = error_from(code_of(kind("what happened")), "what happened")

    assert (type(back), str(back)) == (kind, "what happened")


def test_unknown_code_is_an_internal_error_that_names_it() -> None:
    """A code that no Statewise server sends is still one of Statewise's errors."""
    error = error_from(grpc.StatusCode.UNIMPLEMENTED, "no such method")

    assert (type(error), str(error)) == (errors.InternalError, "no such method (UNIMPLEMENTED)")


def test_specialized_error_takes_its_ancestors_code() -> None:
    """A subclass that a plugin adds needs no row of its own."""

    class QuotaError(errors.OverloadedError):
        pass

    assert code_of(QuotaError()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code_of(errors.ParityError()) is grpc.StatusCode.INTERNAL
