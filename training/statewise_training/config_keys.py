"""Keys of a configuration by their full path, and suggestions for unknown ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel


class Key(NamedTuple):
    """A setting."""

    path: str
    """Full path as in `--set`: optimizer.learning_rate."""
    kind: str | None
    """Section's `kind`, where sections of several kinds share a name."""

    @property
    def section(self) -> str:
        """Path of its section; empty for the top level of the file."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]


def keys_of(record: type[BaseModel], prefix: str = "", kind: str | None = None) -> Iterator[Key]:
    """Yield every key of a record and of its nested records."""
    for name, field in record.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        yield Key(path, kind)
        sections = list(_records(field.annotation))
        for section in sections:
            yield from keys_of(section, path, _kind_of(section) if len(sections) > 1 else None)


def suggest(path: str, keys: list[Key], raw: Mapping[str, Any]) -> str:
    """Suggest for an error the key that was probably meant, or list the keys of the section.

    `raw` is the file as read; its `kind` settings select among sections of several kinds.
    """
    section, _, name = path.rpartition(".")
    others = sorted({key.kind for key in keys if key.path == path and key.kind is not None})
    if others:
        return f"; only {section} of kind {' or '.join(others)} has it"
    kind = _section(raw, section).get("kind")
    own = {key.name for key in keys if key.section == section and key.kind in {None, kind}}
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {f'{section}.' if section else ''}{near[0]}?"
    elsewhere = {key.name: key.path for key in reversed(keys) if key.name != "kind"}
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8)
    if near:
        return f"; did you mean {elsewhere[near[0]]}?"
    near = difflib.get_close_matches(name, own, n=1)
    if near:
        return f"; did you mean {f'{section}.' if section else ''}{near[0]}?"
    return f"; known {f'in {section}' if section else 'here'}: {', '.join(sorted(own))}"


def _section(raw: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for part in path.split(".") if path else ():
        inner = raw.get(part)
        if not isinstance(inner, dict):
            return {}
        raw = inner
    return raw


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the record types of a field: its own, or the members of its union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _records(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, UnionType}:
        for member in get_args(annotation):
            yield from _records(member)


def _kind_of(record: type[BaseModel]) -> str | None:
    field = record.model_fields.get("kind")
    choices = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return str(choices[0]) if len(choices) == 1 else None
