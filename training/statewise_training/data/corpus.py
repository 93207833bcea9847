"""Reading texts and series, with errors that name the file, the place in it and the remedy."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from statewise.errors import ConfigError
from statewise.files import read_text
from statewise.series import Series
from statewise.series import read_series as series_of_file
from statewise_training.config import CorpusData, JSONLData, SeriesData, TextData


def read_texts(data: CorpusData | TextData | JSONLData) -> list[str]:
    """Return every document, in an order that depends on the data alone.

    Raises ConfigError naming the file, and the line or the byte offset.
    """
    if isinstance(data, CorpusData):
        documents = python_docs()
    elif isinstance(data, TextData):
        documents = [read_text(path) for path in expand(data.files)]
    else:
        documents = [text for path in expand(data.files) for text in _read_jsonl(path, data.text_field)]
    documents = [text for text in documents if text]
    if not documents:
        raise ConfigError("data.files: the files hold no text")
    return documents


def python_docs() -> list[str]:
    """Return the topics of Python's own documentation (`pydoc_data.topics`), sorted by their names.

    Many topics are excerpts of others (`if` and `while` of `compound`); topics that mostly repeat longer ones
    are left out, so that training sees no held-out document.
    """
    from pydoc_data.topics import topics

    kept: list[str] = []
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(paragraph.split()) for paragraph in topics[name].split("\n\n")]
        repeated = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if repeated <= 0.5 * sum(map(len, paragraphs)):
            kept.append(name)
        seen.update(paragraphs)
    return [topics[name] for name in sorted(kept)]


def read_series(data: SeriesData) -> list[Series]:
    """Return every series, float32 `[time, features]`. Raises ConfigError naming the file and the line or row."""
    paths = expand(data.files)
    series = [series_of_file(path, data.columns, setting="data.columns") for path in paths]
    for path, values in zip(paths, series, strict=True):
        if values.shape[1] != series[0].shape[1]:
            raise ConfigError(
                f"{path}: has {values.shape[1]} features, {paths[0]} has {series[0].shape[1]}; all series need the same"
            )
    return series


def expand(patterns: Sequence[str], setting: str = "data.files") -> list[Path]:
    """Return the sorted files of paths and glob patterns. Raises ConfigError naming the setting if there are none."""
    paths: set[Path] = set()
    for pattern in patterns:
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 # Path.glob takes no absolute pattern
        # glob reads a name with brackets as a pattern; it may still be a file.
        found = [path for path in found or [Path(pattern)] if path.is_file()]
        if not found:
            raise ConfigError(f"{setting}: {pattern!r} matches no file (working directory: {Path.cwd()})")
        paths.update(found)
    return sorted(paths)


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    for place, record in read_records(path):
        yield text_member(record, text_field, place, "data.text_field")


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of a JSON Lines file, with its position for errors.

    Raises ConfigError for a line that is not an object.
    """
    # Not splitlines(), which also splits at characters that JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parse_line(line, place)


def _parse_line(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: must be a JSON object, but it is a {type(record).__name__}")
    return record


def member(record: dict[str, Any], field: str, place: str, setting: str) -> Any:
    """Return the member of an object. Raises ConfigError naming the setting that chooses it if it is missing."""
    if field not in record:
        raise ConfigError(f"{place}: no member {field!r} (it has {', '.join(record)}); set {setting}")
    return record[field]


def text_member(record: dict[str, Any], field: str, place: str, setting: str) -> str:
    """Return the text in a member of an object. Raises ConfigError where it is not a text."""
    text = member(record, field, place, setting)
    if not isinstance(text, str):
        raise ConfigError(f"{place}: {field!r} must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {field!r} holds a lone surrogate at character {error.start}") from error
    return text
