import json
from typing import Any

import pytest

from statewise.bundles.manifest import Manifest
from statewise.bundles.manifest_file import decode_manifest, encode_manifest, seal_manifest
from statewise.errors import BundleError
from tests.small_bundles import CERTIFICATE, CONTENT, DATA, STEP

HASH = "0" * 64


def manifest(**changes: Any) -> Manifest:
    fields = {
        **vars(CONTENT),
        "name": "sum",
        "version": 1,
        "files": dict.fromkeys((STEP, DATA, CERTIFICATE), HASH),
    }
    return Manifest.model_validate({**fields, **changes})


def content(**changes: Any) -> dict[str, Any]:
    return {**manifest().model_dump(mode="json"), **changes}


def test_a_manifest_is_read_as_it_was_written() -> None:
    """Whatever a plugin puts into its configuration survives: nesting, fractions, letters of any script."""
    written = manifest(plugin_config={"größe": [1, 0.1, 1e-300, None, {"a": True}], "line\nend": "\t"})

    assert decode_manifest(encode_manifest(written)) == written


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{\n  "name": "sum",\n  oops', r"line 3, column 3"),
        (b"\xff", "not valid UTF-8 at byte 0"),
        (b"[]", "holds a list"),
        (b'{"schema_version": NaN}', "NaN"),
        (b'{"version": 1e999}', "changed since"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 2_000 + b"1" + b"}" * 2_000, "manifest"),
        (b'{"version": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"", "line 1, column 1"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_place(data: bytes, reason: str) -> None:
    """Whatever the bytes are, the answer is a BundleError that tells where to look."""
    with pytest.raises(BundleError, match=reason):
        decode_manifest(data)


def test_another_spelling_of_the_same_content_is_refused() -> None:
    """A manifest that an editor has reformatted is not the one that was written."""
    reformatted = json.dumps(json.loads(encode_manifest(manifest()))).encode()

    with pytest.raises(BundleError, match="digest"):
        decode_manifest(reformatted)


def test_a_repeated_field_is_refused() -> None:
    """JSON readers differ in which of two equal keys they take; here neither is taken."""
    text = encode_manifest(manifest()).decode()
    doubled = text.replace('  "version": 1,', '  "version": 1,\n  "version": 1,', 1)

    assert doubled != text
    with pytest.raises(BundleError, match="digest"):
        decode_manifest(doubled.encode())


def test_a_newer_schema_names_the_release_to_use() -> None:
    """A bundle of a later release tells the user which one to install."""
    newer = seal_manifest(content(schema_version=3, created_with={"statewise": "7.0.0"}, shiny=True))

    with pytest.raises(BundleError, match=r"schema version 3 is newer .* use statewise 7\.0\.0 or later"):
        decode_manifest(newer)


def test_an_older_schema_asks_for_another_export() -> None:
    """A bundle from before the schema changed is to be exported again."""
    with pytest.raises(BundleError, match=r"schema version 1 is older .* export the model again"):
        decode_manifest(seal_manifest(content(schema_version=1)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shiny": True}, "shiny"),
        ({"version": 0}, "version"),
        ({"name": "../evil"}, "name"),
        ({"files": {}}, "files named but not listed"),
        ({"files": {"../../etc/passwd": HASH}}, "plain file name"),
        ({"files": {"a": "not a hash"}}, "files.a"),
        ({"variants": {}}, "variants"),
        ({"schema_version": "2"}, "schema_version"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(changes: dict[str, Any], field: str) -> None:
    """A sealed manifest whose fields are wrong is refused, naming the field."""
    with pytest.raises(BundleError, match=field):
        decode_manifest(seal_manifest(content(**changes)))
