"""Labelled data: what is read, and what a user is told of data that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.errors import ConfigError
from statewise_training.config import LabelledData
from statewise_training.data.labelled.reading import Span, read_labelled


def read(path: Path, **options: Any) -> list[tuple[Any, Any]]:
    data = LabelledData(kind="labelled", files=(str(path),), **options)
    return [(example.items, example.target) for example in read_labelled(data)]


def jsonl(folder: Path, *records: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def told(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, **options)
    return str(caught.value)


def test_texts_have_labels_or_tags(tmp_path: Path) -> None:
    """Labels are strings, integers or truth values; tags lie over characters, in any order."""
    path = jsonl(tmp_path, {"text": "ab c", "label": 3, "tags": [[3, 4, "x"], [0, 2, True]]})

    assert read(path) == [("ab c", "3")]
    assert read(path, target="tags") == [("ab c", [Span(0, 2, "true"), Span(3, 4, "x")])]


def test_words_with_a_label_each_become_a_tagged_text(tmp_path: Path) -> None:
    """The text is what a client would send: the words with spaces between."""
    path = jsonl(tmp_path, {"words": ["New", "York", "!"], "ner": ["B", "I", "O"]})

    ((text, spans),) = read(path, target="tags", input_field="words", target_field="ner")

    assert text == "New York !"
    assert [(text[span.start : span.end], span.label) for span in spans] == [("New", "B"), ("York", "I"), ("!", "O")]


def test_vectors_have_a_tag_each_or_a_value(tmp_path: Path) -> None:
    """A list of numbers is a sequence of one feature."""
    path = jsonl(tmp_path, {"text": [1, 2], "tags": ["up", "down"], "value": 0.5})

    ((items, spans),) = read(path, target="tags")
    ((_, value),) = read(path, target="value")

    assert items.tolist() == [[1.0], [2.0]]
    assert spans == [Span(0, 1, "up"), Span(1, 2, "down")]
    assert value.tolist() == [0.5]


def test_archives_hold_ragged_sequences(tmp_path: Path) -> None:
    """What lies behind a sequence's length is neither read nor checked; tags are cut with it."""
    items = np.zeros((2, 3, 4), np.float32)
    items[0, 2] = np.nan
    arrays = {"lengths": [2, 3], "labels": ["a", "b"], "tags": [[1, 2, -1], [1, 1, 1]], "values": [[1.0], [2.0]]}
    np.savez(tmp_path / "data.npz", items=items, **{name: np.array(array) for name, array in arrays.items()})

    labels, tags = (read(tmp_path / "data.npz", target=target) for target in ("label", "tags"))

    assert [(len(items), label) for items, label in labels] == [(2, "a"), (3, "b")]
    assert tags[0][1] == [Span(0, 1, "1"), Span(1, 2, "2")]


@pytest.mark.parametrize(
    ("record", "options", "part"),
    [
        ({"text": "a"}, {}, "no member 'label' (it has text); set data.target and data.target_field"),
        ({"body": "a", "label": "x"}, {}, "no member 'text'"),
        ({"text": "a", "label": 1.5}, {}, "'label' must be a label, a string or an integer, got 1.5"),
        ({"text": "", "label": "x"}, {}, "'text' is empty"),
        ({"text": "ab", "tags": [[0, 3, "x"]]}, {"target": "tags"}, "but the text has 2 characters"),
        ({"text": "ab", "tags": [[0, 2, "x"], [1, 2, "y"]]}, {"target": "tags"}, "overlap"),
        ({"text": "ab", "tags": [[0, "x"]]}, {"target": "tags"}, "each of 'tags' must be [start, end, label]"),
        ({"text": ["a", "b"], "tags": ["x"]}, {"target": "tags"}, "1 labels for 2 words"),
        ({"text": [[1], [2]], "tags": ["x"]}, {"target": "tags"}, "a list of 2 labels, one for each vector, got 1"),
        ({"text": [[1], [2, 3]], "label": "x"}, {}, "vectors of different sizes"),
        ({"text": [1, 2, 3], "label": "x"}, {}, "texts and vectors cannot be mixed"),
        ({"text": "a", "value": "much"}, {"target": "value"}, "'value' must hold numbers, got much"),
        ({"text": "a", "value": [1, 2]}, {"target": "value"}, "target of 2 numbers, but"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: Any, options: dict[str, Any], part: str) -> None:
    """The message has the file, the line, the member and what is wrong with it."""
    good = {"text": "good", "label": "x", "tags": [], "value": 1}
    path = jsonl(tmp_path, good, record)

    message = told(path, **options)

    assert f"{path}, line 2" in message
    assert part in message


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"items": np.zeros((2, 3))}, "has no array 'labels' (it has items); set data.target_field"),
        ({"items": np.zeros((2, 3)), "labels": np.array([1])}, "'labels' has shape [1], but there are 2 sequences"),
        ({"items": np.zeros(2), "labels": np.zeros(2, int)}, "must hold numbers [n, time, features]"),
        (
            {"items": np.zeros((2, 3)), "labels": np.zeros(2, int), "lengths": np.array([0, 3])},
            "'lengths' must be integers between 1 and 3",
        ),
        ({"items": np.full((2, 3), np.inf), "labels": np.zeros(2, int)}, "index 0: 'items' holds a number that is not"),
    ],
)
def test_a_bad_archive_is_named(tmp_path: Path, arrays: dict[str, Any], part: str) -> None:
    """The message has the file, the array and what is wrong with it."""
    np.savez(tmp_path / "data.npz", **arrays)

    message = told(tmp_path / "data.npz")

    assert str(tmp_path / "data.npz") in message
    assert part in message
