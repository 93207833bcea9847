"""Bytes into request messages, with an error that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from statewise.errors import InternalError, InvalidRequestError, StatewiseError

FieldProto = descriptor_pb2.FieldDescriptorProto


def parser_for(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that raises InvalidRequestError for bad UTF-8, InternalError for other damage."""

    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            raise explain(type(deserialize(b"")).DESCRIPTOR, raw) from error

    return parse


def explain(descriptor: Descriptor, raw: bytes) -> StatewiseError:
    """Return the error for bytes that cannot be parsed as a message of this type."""
    try:
        message = _bytes_twin(descriptor).FromString(raw)
    except DecodeError:
        return InternalError(f"the request is no {descriptor.full_name} message: its protobuf encoding is damaged")
    return InvalidRequestError("is not valid UTF-8", field=_field_with_bad_text(message))


@lru_cache(maxsize=64)
def _bytes_twin(descriptor: Descriptor) -> type[Message]:
    """Return the same message type with `bytes` in place of `string`, which parses any text."""
    pool = descriptor_pool.DescriptorPool()
    _add_file(pool, descriptor.file, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add_file(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add_file(pool, dependency, added)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    _strings_to_bytes(proto.message_type)
    pool.Add(proto)


def _strings_to_bytes(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
    for message in messages:
        _strings_to_bytes(message.nested_type)
        for field in message.field:
            # The key of a map cannot be bytes.
            is_map_key = message.options.map_entry and field.number == 1
            if field.type == FieldProto.TYPE_STRING and not is_map_key:
                field.type = FieldProto.TYPE_BYTES


def _field_with_bad_text(message: Message) -> str | None:
    """Return the dotted name of the first bytes field that is not UTF-8."""
    for field, value in message.ListFields():
        for item in _items(value):
            if isinstance(item, bytes) and not _is_text(item):
                return str(field.name)
            if isinstance(item, Message) and (inner := _field_with_bad_text(item)):
                return f"{field.name}.{inner}"
    return None


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, bytes | Message):
        return (value,)
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, Iterable) else ()


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
