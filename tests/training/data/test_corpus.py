from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from statewise.errors import ConfigError
from statewise_training.config import CorpusData, JSONLData, SeriesData, TextData
from statewise_training.data.corpus import read_series, read_texts


def texts_error(data: TextData | JSONLData) -> str:
    with pytest.raises(ConfigError) as caught:
        read_texts(data)
    return str(caught.value)


def series_error(path: Path, **fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_series(SeriesData(kind="series", files=str(path), **fields))
    return str(caught.value)


def test_the_built_in_corpus_is_large_and_does_not_repeat_itself() -> None:
    """The Python documentation has no topic that is mostly part of the others."""
    documents = read_texts(CorpusData())
    paragraphs = [[" ".join(p.split()) for p in document.split("\n\n")] for document in documents]
    others = [set().union(*paragraphs[:i], *paragraphs[i + 1 :]) for i in range(len(paragraphs))]
    repeated = [
        sum(len(p) for p in own if p in other) / sum(map(len, own))
        for own, other in zip(paragraphs, others, strict=True)
    ]

    assert sum(map(len, documents)) > 200_000
    assert max(repeated) <= 0.5


def test_the_built_in_corpus_is_in_a_fixed_order() -> None:
    """Two readings give the same documents in the same order."""
    assert read_texts(CorpusData()) == read_texts(CorpusData())


def test_text_files_are_found_by_pattern_and_sorted(tmp_path: Path) -> None:
    """Patterns expand, a file named twice comes once, empty ones are left out, line ends and BOM are kept as text."""
    (tmp_path / "b.txt").write_bytes(b"two\r\nlines")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "c.txt").touch()
    (tmp_path / "[x].txt").write_text("brackets")
    files = (f"{tmp_path}/?.txt", f"{tmp_path}/b.txt", f"{tmp_path}/[x].txt")

    assert read_texts(TextData(kind="text", files=files)) == ["brackets", "one", "two\r\nlines"]


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    """A pattern that matches nothing is in the message, with the folder it was looked for from."""
    text = texts_error(TextData(kind="text", files=(f"{tmp_path}/*.txt",)))

    assert "*.txt" in text
    assert str(Path.cwd()) in text


def test_invalid_utf8_is_named_with_file_and_byte(tmp_path: Path) -> None:
    """A file in another encoding is refused with the offset of the first bad byte."""
    path = tmp_path / "latin.txt"
    path.write_bytes("abc é".encode("latin-1"))

    text = texts_error(TextData(kind="text", files=(str(path),)))

    assert str(path) in text
    assert "byte 4 (0xe9)" in text


def test_only_empty_files_are_refused(tmp_path: Path) -> None:
    """Files without any text are an error, not an empty corpus."""
    (tmp_path / "a.txt").touch()

    assert "no text" in texts_error(TextData(kind="text", files=(f"{tmp_path}/a.txt",)))


def test_jsonl_gives_one_document_per_line(tmp_path: Path) -> None:
    """Blank lines are passed over; a line separator of Unicode inside a string ends nothing."""
    path = tmp_path / "a.jsonl"
    separator = "\N{LINE SEPARATOR}"
    path.write_text(json.dumps({"body": f"a{separator}b"}, ensure_ascii=False) + '\r\n\n{"body": "c", "x": 1}\n')

    assert [f"a{separator}b", "c"] == read_texts(JSONLData(kind="jsonl", files=(str(path),), text_field="body"))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "a"', "not valid JSON"),
        ("[1]", "it is a list"),
        ('{"body": "a"}', "no member 'text' (it has body)"),
        ('{"text": 3}', "must be a string, got int"),
        ('{"text": "\\ud800"}', "lone surrogate"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, part: str) -> None:
    """The message has the file and the line."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")

    text = texts_error(JSONLData(kind="jsonl", files=(str(path),)))

    assert f"{path}, line 3" in text
    assert part in text


def test_series_come_from_csv_and_npy(tmp_path: Path) -> None:
    """A header is found by not being numbers; columns are taken by name, in the order asked for; 1-D is one feature."""
    (tmp_path / "a.csv").write_text("time,x,y\n0,1,2\n1,3,4.5\n")
    (tmp_path / "b.csv").write_text("1,2\n3,4\n")
    np.save(tmp_path / "c.npy", np.arange(3))

    named = read_series(SeriesData(kind="series", files=f"{tmp_path}/a.csv", columns=("y", "x")))
    plain = read_series(SeriesData(kind="series", files=f"{tmp_path}/b.csv"))
    single = read_series(SeriesData(kind="series", files=f"{tmp_path}/c.npy"))

    assert [series.tolist() for series in named] == [[[2, 1], [4.5, 3]]]
    assert [series.tolist() for series in plain] == [[[1, 2], [3, 4]]]
    assert [series.tolist() for series in single] == [[[0], [1], [2]]]


@pytest.mark.parametrize(
    ("content", "fields", "part"),
    [
        ("x\n1\nabc\n", {}, "line 3: 'abc' is not a number"),
        ("x,y\n1,2\n3\n", {}, "line 3: has 1 cells, expected 2"),
        ("1\nnan\n", {}, "line 2: only finite"),
        ("x\n1\n", {"columns": ("z",)}, "no column 'z' (columns: x)"),
        ("1\n2\n", {"columns": ("z",)}, "first line holds numbers"),
        ("x,y\n", {}, "no rows below"),
        ("\n", {}, "no rows"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path: Path, content: str, fields: dict[str, object], part: str) -> None:
    """The message has the file and, where there is one, the line."""
    path = tmp_path / "a.csv"
    path.write_text(content)

    text = series_error(path, **fields)

    assert str(path) in text
    assert part in text


def test_a_bad_npy_is_refused_without_unpickling(tmp_path: Path) -> None:
    """Objects, text, three axes and NaN are refused, and so is a file that is no array."""
    for name, values in {
        "object": np.array([{}], object),
        "text": np.array(["a"]),
        "cube": np.zeros((2, 2, 2)),
        "nan": np.array([[0.0], [np.nan]]),
    }.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01")

    for path in sorted(tmp_path.glob("*.npy")):
        assert str(path) in series_error(path)
    assert "row 1, column 0 is nan" in series_error(tmp_path / "nan.npy")


def test_series_of_different_widths_are_refused(tmp_path: Path) -> None:
    """The two files that disagree are both named."""
    np.save(tmp_path / "a.npy", np.zeros((3, 1)))
    np.save(tmp_path / "b.npy", np.zeros((3, 2)))

    text = series_error(tmp_path / "?.npy")

    assert "a.npy has 1" in text
    assert "b.npy: has 2" in text
