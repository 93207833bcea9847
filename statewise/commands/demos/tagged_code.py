"""Python source code whose characters are tagged by Python's own `tokenize`."""

from __future__ import annotations

import io
import json
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TAGS = {
    "comment": tokenize.COMMENT,
    "name": tokenize.NAME,
    "number": tokenize.NUMBER,
    "operator": tokenize.OP,
    "string": tokenize.STRING,
}
OUTSIDE = "space"
_KINDS = {kind: tag for tag, kind in TAGS.items()}
# Where the tokenizer takes f-strings apart (Python 3.12), all of one is a string here, as it was before.
_FSTRING_STEPS = {getattr(tokenize, "FSTRING_START", None): 1, getattr(tokenize, "FSTRING_END", None): -1}
_FSTRING_STEPS.pop(None, None)


def standard_library(num_modules: int, characters: range) -> list[tuple[str, str]]:
    """Name and source of modules of the standard library, those of a size within `characters`, in their names' order."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(folder.glob("*.py")):
        source = path.read_text("utf-8", errors="replace")
        if len(source) in characters:
            found.append((path.stem, source))
    return found[:num_modules]


def tags_of(source: str) -> list[tuple[int, int, str]]:
    """Every token of a module as [start, end, tag], in characters. Raises tokenize.TokenError for what is no Python."""
    starts = [0]
    for line in io.StringIO(source):
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int, str]] = []
    depth, begin = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        first, last = (starts[line - 1] + column for line, column in (token.start, token.end))
        step = _FSTRING_STEPS.get(token.type, 0)
        if step == 1 and depth == 0:
            begin = first
        depth += step
        if step == -1 and depth == 0:
            spans.append((begin, last, "string"))
        elif depth == 0 and token.type in _KINDS and first < last:
            is_keyword = token.type == tokenize.NAME and keyword.iskeyword(token.string)
            spans.append((first, last, "keyword" if is_keyword else _KINDS[token.type]))
    return spans


def write_tagged(path: Path, modules: list[tuple[str, str]]) -> None:
    """The modules as data of kind `labelled`."""
    lines = [json.dumps(record) for record in _records(modules)]
    path.write_text("\n".join(lines) + "\n")


def _records(modules: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for name, source in modules:
        yield {"module": name, "text": source, "tags": tags_of(source)}
