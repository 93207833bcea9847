"""Reading pairs, and the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.errors import ConfigError
from statewise_training.config import PairsData
from statewise_training.data.pairs.reading import Pair, read_pairs, split_pairs


def records(folder: Path, *lines: Any) -> PairsData:
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return PairsData(kind="pairs", files=(str(path),), source_field="from", target_field="to")


def test_json_lines_name_source_and_target(tmp_path: Path) -> None:
    """By the configured members; a source may also be vectors."""
    (text,) = read_pairs(records(tmp_path, {"from": "a", "to": "b", "more": 1}))
    (vectors,) = read_pairs(records(tmp_path, {"from": [[1, 2], [3, 4.5]], "to": ""}))

    assert (text.source, text.target) == ("a", "b")
    np.testing.assert_array_equal(vectors.source, np.array([[1, 2], [3, 4.5]], np.float32))
    assert vectors.target == ""


def test_parallel_files_belong_together_line_by_line(tmp_path: Path) -> None:
    """Whatever the line ends are; a line that is empty on both sides is none."""
    (tmp_path / "a.de").write_bytes(b"eins\r\n\r\ndrei\r\n")
    (tmp_path / "a.en").write_text("one\n\nthree\n")
    files = {"source_files": [str(tmp_path / "*.de")], "target_files": [str(tmp_path / "*.en")]}

    pairs = read_pairs(PairsData(kind="pairs", **files))

    assert [(pair.source, pair.target) for pair in pairs] == [("eins", "one"), ("drei", "three")]
    assert pairs[1].place == f"{tmp_path / 'a.de'}, line 3"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ({"from": "a"}, r"line 2: no member 'to' \(it has from\); set data\.target_field"),
        ({"to": "a"}, r"line 2: no member 'from' \(it has to\); set data\.source_field"),
        ({"from": "", "to": "a"}, "line 2: the source is empty"),
        ({"from": [], "to": "a"}, "line 2: 'from' must be a string or a list of vectors"),
        ({"from": [[1], [2, 3]], "to": "a"}, "line 2: 'from' must be a string or a list of vectors of one size"),
        ({"from": [["x"]], "to": "a"}, "line 2: 'from' must be a string or a list of vectors of one size"),
        ({"from": [[float("nan")]], "to": "a"}, "line 2: 'from' must be .* all numbers finite"),
        ({"from": 3, "to": "a"}, "line 2: 'from' must be a string, got int"),
        ({"from": "a", "to": ["b"]}, "line 2: 'to' must be a string, got list"),
        ({"from": [[1.0]], "to": "a"}, "line 2: the source is vectors of 1 numbers, but that of .* line 1 is a text"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(tmp_path: Path, line: Any, part: str) -> None:
    """And with what is wrong with it."""
    with pytest.raises(ConfigError, match=part):
        read_pairs(records(tmp_path, {"from": "good", "to": "good"}, line))


def test_parallel_files_of_different_lengths_are_refused(tmp_path: Path) -> None:
    """Both are named with their numbers of lines."""
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("1\n")
    data = PairsData(kind="pairs", source_files=(str(tmp_path / "a"),), target_files=(str(tmp_path / "b"),))

    with pytest.raises(ConfigError, match=r"b: has 1 lines, but .*a has 2"):
        read_pairs(data)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "give files"),
        ({"source_files": "a"}, "go together"),
        ({"files": "a", "source_files": "a", "target_files": "b"}, "give files"),
    ],
)
def test_pairs_are_given_in_one_way(options: dict[str, str], part: str) -> None:
    """As JSON Lines or as parallel files."""
    with pytest.raises(ValueError, match=part):
        PairsData(kind="pairs", **options)


def test_no_source_is_on_both_sides_of_the_split() -> None:
    """Pairs that share their source go to one side together."""
    pairs = [Pair(str(number), f"source {number % 10}", f"target {number}") for number in range(40)]

    train, held_out = split_pairs(pairs, 0.2, 0)

    assert len(train) == 32
    assert {pair.source for pair in train}.isdisjoint(pair.source for pair in held_out)
    assert split_pairs(pairs, 0.2, 0)[1] == held_out
    assert split_pairs(pairs, 0.2, 1)[1] != held_out


def test_one_source_alone_cannot_be_split() -> None:
    """There is nothing to hold out."""
    with pytest.raises(ConfigError, match=r"data\.held_out"):
        split_pairs([Pair("1", "same", "a"), Pair("2", "same", "b")], 0.1, 0)
