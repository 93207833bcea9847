"""Source code that is tagged for demo `tags`."""

from __future__ import annotations

from statewise.cli.demos.tagged_code import TAGS, standard_library, tag_of_each, tags_of

SOURCE = "if x == 1.5:  # \"no\" string\n\f\n    y = f\"{x} ü\" + '''two\nlines'''\n"


def test_tags_are_those_of_tokenize() -> None:
    """Positions are characters of the whole source: past form feeds, wide characters, over lines."""
    assert [(SOURCE[start:end], tag) for start, end, tag in tags_of(SOURCE)] == [
        ("if", "keyword"),
        ("x", "name"),
        ("==", "operator"),
        ("1.5", "number"),
        (":", "operator"),
        ('# "no" string', "comment"),
        ("y", "name"),
        ("=", "operator"),
        ('f"{x} ü"', "string"),
        ("+", "operator"),
        ("'''two\nlines'''", "string"),
    ]


def test_every_character_has_a_tag() -> None:
    """What is no token is space."""
    tags = [TAGS[index] for index in tag_of_each("a  = 1\n")]

    assert tags == ["name", "space", "space", "operator", "space", "number", "space"]


def test_the_standard_library_can_be_tagged() -> None:
    """Modules of a wanted size are found, whatever Python this is, and their tags lie inside them."""
    modules = standard_library(range(4_000, 6_000))

    assert len(modules) > 5
    assert all(0 <= start < end <= len(source) for _, source in modules[:3] for start, end, _ in tags_of(source))
