"""Sequences from arguments or a file, sent a batch at a time, in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer

from statewise.client import Prompt
from statewise.errors import InvalidRequestError

Result = TypeVar("Result")

Texts = Annotated[list[str] | None, typer.Argument(help="Texts; - reads one from each line of standard input.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="One sequence a line: a text, or in a file that ends in .jsonl a JSON string, a list of token ids or a "
        "list of vectors.",
        exists=True,
        dir_okay=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences in one request.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for each sequence, on a line of its own.")]


def read_sequences(texts: Sequence[str] | None, file: Path | None) -> Iterator[Prompt]:
    """The sequences that the command line names, as they are read.

    Raises InvalidRequestError where there are none, or too many sources, or a line is no sequence.
    """
    if bool(texts) == (file is not None):
        raise InvalidRequestError("give texts, or --file, and not both", field="TEXT")
    if file is None:
        return _lines(sys.stdin) if texts == ["-"] else iter(texts or ())
    return _from_file(file)


def read_ids(tokens: str, field: str) -> list[int]:
    """Token ids from text such as "1,2,3". Raises InvalidRequestError, naming the flag."""
    try:
        return [int(token) for token in tokens.split(",") if token.strip()]
    except ValueError as error:
        raise InvalidRequestError(f'must be ids with commas, as "1,2,3", got {tokens!r}', field=field) from error


def in_batches(
    sequences: Iterator[Prompt], size: int, ask: Callable[[list[Prompt]], list[Result]]
) -> Iterator[tuple[Prompt, Result]]:
    """Each sequence with its answer."""
    while batch := list(islice(sequences, size)):
        yield from zip(batch, ask(batch), strict=True)


def print_json(sequence: Prompt, answer: dict[str, Any]) -> None:
    """One line, with the sequence where it was text."""
    given = {"text": sequence} if isinstance(sequence, str) else {}
    print(json.dumps(given | answer, ensure_ascii=False), flush=True)


def shorten(sequence: Prompt) -> str:
    """Shorten a sequence for a table."""
    text = sequence if isinstance(sequence, str) else " ".join(map(str, np.asarray(sequence).ravel()[:20].tolist()))
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _lines(source: Any) -> Iterator[str]:
    for line in source:
        if text := line.rstrip("\r\n"):
            yield text


def _from_file(file: Path) -> Iterator[Prompt]:
    with file.open(encoding="utf-8") as source:
        for number, line in enumerate(_lines(source), start=1):
            yield _parse(line, f"{file}, sequence {number}") if file.suffix == ".jsonl" else line


def _parse(line: str, place: str) -> Prompt:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"{place}: this is no JSON: {error}", field="--file") from error
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(isinstance(item, list) for item in given):
        return _numbers(given, np.float32, place)
    if isinstance(given, list) and all(isinstance(item, int) for item in given):
        return _numbers(given, np.int64, place)
    raise InvalidRequestError(f"{place}: must be a string, a list of ids or a list of vectors", field="--file")


def _numbers(given: list[Any], dtype: Any, place: str) -> Prompt:
    try:
        return np.asarray(given, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(f"{place}: {error}", field="--file") from error
