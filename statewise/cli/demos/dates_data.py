"""Dates as people of many languages write them, by Babel's locale data (Unicode's CLDR), and as ISO 8601 does."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from typing import NamedTuple

from babel import Locale
from babel.dates import format_date

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "fi", "pl", "tr", "hu", "ru", "el")
STYLES = ("full", "long", "medium", "short")
FIRST_DAY, NUM_DAYS = dt.date(1900, 1, 1), 73_049
"""To the end of 2099."""
HELD_OUT_DAYS = 0.1
"""Share of all days that no pair to learn from is made of, in any language."""
SEED = 20_111


class Style(NamedTuple):
    """One way in which a language writes dates."""

    language: str
    name: str

    @property
    def is_clear(self) -> bool:
        """Whether it tells day, month and year apart: 3/4/25 does not."""
        pattern = Locale.parse(self.language).date_formats[self.name].pattern
        has_whole_year = "yy" not in pattern.replace("yyyy", "y")
        return has_whole_year and ("MMM" in pattern or pattern.startswith("y") or "." in pattern)


HELD_OUT_STYLE = Style("fr", "medium")
"""Never learnt from; French is, in its other styles."""


@dataclass(frozen=True)
class Pair:
    """A date as its style writes it, and as ISO 8601 does."""

    style: Style
    source: str
    target: str


@dataclass(frozen=True)
class Dates:
    """Pairs for training, and held-out pairs for the questions."""

    train: list[Pair]
    held_out_days: list[Pair]
    """Days that were not learnt from, in styles that were."""
    held_out_style: list[Pair]
    """Days that were not learnt from, in a style that was not either."""


def clear_styles() -> list[Style]:
    """Every style that tells day, month and year apart."""
    styles = (Style(language, name) for language in LANGUAGES for name in STYLES)
    return [style for style in styles if style.is_clear]


def make_dates(num_train: int, num_per_style: int) -> Dates:
    """Draw pairs to learn from and, for each style, some to ask; the same ones every time."""
    draw = random.Random(SEED)
    days = [FIRST_DAY + dt.timedelta(index) for index in range(NUM_DAYS)]
    draw.shuffle(days)
    cut = round(HELD_OUT_DAYS * NUM_DAYS)
    learnt = [style for style in clear_styles() if style != HELD_OUT_STYLE]
    return Dates(
        train=[_pair(draw.choice(learnt), draw.choice(days[cut:])) for _ in range(num_train)],
        held_out_days=[_pair(style, day) for style in learnt for day in draw.sample(days[:cut], num_per_style)],
        held_out_style=[_pair(HELD_OUT_STYLE, day) for day in draw.sample(days[:cut], 10 * num_per_style)],
    )


def _pair(style: Style, day: dt.date) -> Pair:
    return Pair(style, format_date(day, style.name, locale=style.language), day.isoformat())
