"""Bytes that are no proper message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.errors import InternalError, InvalidRequestError, StatewiseError
from statewise.v1 import generation_pb2 as pb
from statewise_server.services.wire import explain, parser_for

parse = parser_for(pb.GenerateRequest.FromString)


def damaged(message: pb.GenerateRequest) -> bytes:
    """Return the message's bytes with every `@` made invalid UTF-8."""
    return message.SerializeToString().replace(b"@", b"\xff")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(model="@"), "model"),
        (pb.GenerateRequest(text="good @ bad"), "text"),
        (pb.GenerateRequest(stop=pb.StopConditions(strings=["good", "@"])), "stop.strings"),
    ],
)
def test_bad_text_names_its_field(message: pb.GenerateRequest, field: str) -> None:
    """Invalid UTF-8 is the caller's error, with the field as the wire spells it, however deep it lies."""
    with pytest.raises(InvalidRequestError) as caught:
        parse(damaged(message))

    assert (caught.value.field, str(caught.value)) == (field, f"{field}: is not valid UTF-8")


def test_bad_text_in_repeated_messages_names_its_field() -> None:
    """Any message type is searched, every one of its repeated messages."""
    raw = pb.ListModelsResponse(models=[pb.Model(name="a"), pb.Model(reason="@")]).SerializeToString()

    error = explain(pb.ListModelsResponse.DESCRIPTOR, raw.replace(b"@", b"\xff"))

    assert isinstance(error, InvalidRequestError)
    assert error.field == "models.reason"


@pytest.mark.parametrize("raw", [b"\x0a\xff\xff\xff", b"\xff\xff", b"\x0a\x05ab", b"\x2a\x02\xff\xff"])
def test_damaged_encoding_is_internal(raw: bytes) -> None:
    """Bytes without the structure of a protobuf are INTERNAL."""
    with pytest.raises(InternalError, match=r"statewise\.v1\.GenerateRequest"):
        parse(raw)


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_fail_properly(raw: bytes) -> None:
    """Whatever arrives is a message or one of Statewise's errors."""
    try:
        outcome: object = parse(raw)
    except StatewiseError as error:
        outcome = error

    assert isinstance(outcome, pb.GenerateRequest | InvalidRequestError | InternalError)
