"""Python source code whose characters are tagged by Python's own `tokenize`."""

from __future__ import annotations

import io
import json
import keyword
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Module = tuple[str, str]
"""Name and source."""

TAGS = ("comment", "keyword", "name", "number", "operator", "space", "string")
OUTSIDE = "space"
_KINDS = {
    tokenize.COMMENT: "comment",
    tokenize.NAME: "name",
    tokenize.NUMBER: "number",
    tokenize.OP: "operator",
    tokenize.STRING: "string",
}
# Where the tokenizer takes f-strings apart (Python 3.12), all of one is a string here, as it was before.
_FSTRING_STEPS = {getattr(tokenize, "FSTRING_START", None): 1, getattr(tokenize, "FSTRING_END", None): -1}
_FSTRING_STEPS.pop(None, None)


def standard_library(sizes: range) -> list[Module]:
    """Modules of the standard library of so many characters, in their names' order."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[Module] = []
    for path in sorted(folder.glob("*.py")):
        source = path.read_text("utf-8", errors="replace")
        if len(source) in sizes:
            found.append((path.stem, source))
    return found


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


def tag_of_each(source: str) -> NDArray[np.int64]:
    """The tag of every character of a module, as its index in `TAGS`."""
    tags = np.full(len(source), TAGS.index(OUTSIDE))
    for start, end, tag in tags_of(source):
        tags[start:end] = TAGS.index(tag)
    return tags


def write_tagged(path: Path, modules: Sequence[Module]) -> None:
    """The modules as data of kind `labelled`."""
    records = ({"module": name, "text": source, "tags": tags_of(source)} for name, source in modules)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
