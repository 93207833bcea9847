"""`manifest.json` as bytes: one spelling only, sealed by a digest of its own.

The file is the JSON of the manifest with one more member, `digest`: the sha256 of that JSON without it.
A reader takes it only where the bytes are exactly what a writer would write, so that not even a changed space
goes unseen. This guards against damage, not forgery: who can write the folder can write the digest.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any, NoReturn

from pydantic import ValidationError

from statewise.bundles.manifest import SCHEMA_VERSION, Manifest
from statewise.errors import BundleError

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`. Raises ValueError for what JSON cannot hold, such as NaN."""
    return seal_manifest(manifest.model_dump())


def seal_manifest(content: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest of any content, with its digest as the last member."""
    return _spell({**content, "digest": _digest(content)})


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in these bytes. Raises BundleError, naming the position or the field."""
    content = _parse(data)
    if not _is_sealed(content, data):
        raise BundleError(f"{MANIFEST_FILE}: changed since it was written (its digest does not match it)")
    del content["digest"]
    _check_schema_version(content)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_FILE}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """Put the faults that pydantic found on one line: field, what is wrong, and the value where it is short."""
    faults = error.errors(include_url=False, include_context=False)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}{_got(fault['input'])}" for fault in faults[:5]
    )


def _got(value: Any) -> str:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return f" (got {value!r})" if is_plain and len(repr(value)) <= 60 else ""


def _parse(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise BundleError(
            f"{MANIFEST_FILE}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{MANIFEST_FILE}: not valid UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{MANIFEST_FILE}: holds a {type(content).__name__}, not an object")
    return content


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _check_schema_version(content: dict[str, Any]) -> None:
    written = content.get("schema_version")
    if isinstance(written, int) and 0 < written < SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE}: schema version {written} is older than this release, {version('statewise')}, "
            f"reads ({SCHEMA_VERSION}); export the model again"
        )
    if isinstance(written, int) and written > SCHEMA_VERSION:
        made_with = content.get("created_with")
        release = made_with.get("statewise") if isinstance(made_with, dict) else None
        remedy = f"use statewise {release} or later" if release else "use a later release of statewise"
        raise BundleError(
            f"{MANIFEST_FILE}: schema version {written} is newer than this release, {version('statewise')}, "
            f"reads ({SCHEMA_VERSION}); {remedy}"
        )


def _is_sealed(content: dict[str, Any], data: bytes) -> bool:
    try:
        return seal_manifest({key: value for key, value in content.items() if key != "digest"}) == data
    except (ValueError, RecursionError):  # an infinite number, or nesting that no writer makes
        return False


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_spell(content)).hexdigest()


def _spell(content: dict[str, Any]) -> bytes:
    # ASCII only, so that no two byte sequences spell the same text.
    return (json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
