"""Errors of arguments as the command line spells them."""

from __future__ import annotations

import pytest

from statewise.cli.flags import in_flags
from statewise.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("top_k", "--top-k"),
        ("num_beams", "--beams"),
        ("stop[2]", "--stop[2]"),
        ("inputs[1]", "TEXTS[1]"),
        ("--file", "--file"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_an_error_names_the_flag(field: str, flag: str) -> None:
    """An argument's name becomes its flag's; any other name stays."""
    renamed = in_flags(InvalidRequestError("is bad", field=field))

    assert (renamed.field, str(renamed)) == (flag, f"{flag}: is bad")


def test_an_error_without_a_field_stays() -> None:
    """There is nothing to rename."""
    assert str(in_flags(InvalidRequestError("is bad"))) == "is bad"
