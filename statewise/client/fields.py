"""Names of a request's fields: an argument's in Python, and the field's of the messages of statewise.v1.

Domain code raises InvalidRequestError with an argument's name. The services rename it for the wire, and the clients
back, so that both ends of a call read the names of their own interface.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from statewise.client.options import BEAM_SEARCH, SAMPLING

_WIRE = {
    **{name: f"sampling.{name}" for name in SAMPLING},
    **{name: f"beam_search.{name}" for name in BEAM_SEARCH},
    "max_tokens": "stop.max_tokens",
    "stop": "stop.strings",
    "ignore_end_token": "stop.ignore_end_token",
    "logprobs": "log_probabilities.top",
}
"""Fields of GenerateRequest that are nested on the wire only."""

_ARGUMENTS = {wire: name for name, wire in _WIRE.items()} | {"log_probabilities": "logprobs"}

_KINDS = {"text": "text", "tokens": "tokens.ids", "vectors": "vectors.values"}
"""Field of a sequence's content in a message, by its kind."""

_CONTENT = re.compile(r"^(?:(?P<owner>source|context|input|inputs\[\d+\])\.)?(?P<content>text|tokens|vectors)\b")

KindOf = Callable[[str], str | None]
"""Returns the kind of the sequence of this name in a request: text, tokens or vectors; None where there is none."""


def generate_field(field: str, kind_of: KindOf) -> str:
    """Return the name of a field of GenerateRequest for an argument's."""
    name, separator, place = field.partition("[")
    return f"{_WIRE[name]}{separator}{place}" if name in _WIRE else sequence_field(field, kind_of)


def sequence_field(field: str, kind_of: KindOf) -> str:
    """Return the name of the field that holds a sequence (`prompt`, `inputs[2]`), or its number of features."""
    owner, _, detail = field.partition(".")
    kind = kind_of(owner)
    if kind is None:
        return field
    # A prompt's kinds are fields of the request itself.
    prefix = "" if owner == "prompt" else f"{owner}."
    return f"{prefix}vectors.features" if detail == "features" else f"{prefix}{_KINDS[kind]}"


def argument_of(field: str) -> str:
    """Return the argument's name for a field on the wire."""
    name, separator, place = field.partition("[")
    if name in _ARGUMENTS:
        return f"{_ARGUMENTS[name]}{separator}{place}"
    if field == "context.values":
        return "context"
    found = _CONTENT.match(field)
    if found is None:
        return field
    owner = {None: "prompt", "input": "sequence"}.get(found["owner"], found["owner"])
    return f"{owner}.features" if field.endswith("vectors.features") else str(owner)
