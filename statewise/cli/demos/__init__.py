"""The demos: each a module of this package with a function `run(work: Work)`, and a line here.

A demo's module is imported only when it runs, so it imports what it needs at its top, whichever extra installs it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from statewise.cli.demos.work import Work
from statewise.errors import NotFoundError

DEMOS = {
    "text": "every causal family, from Markov to Transformer, learns Python's documentation; one is streamed from",
    "dates": "an encoder-decoder reads dates in fourteen languages and writes them as ISO 8601",
    "series": "a mixture density network forecasts the weather of Seattle, with bands that hold what they promise",
    "digits": "a Vision Transformer, which comes as a plugin from outside, reads handwritten digits",
    "tags": "a bidirectional GRU tells keywords, names, strings and comments in Python code, character by character",
}
"""Summary of each demo, by its name, which is also its module's."""


def load_demo(name: str) -> Callable[[Work], None]:
    """Import the demo of that name. Raises NotFoundError, listing the demos."""
    if name not in DEMOS:
        raise NotFoundError(f"NAME: there is no demo {name!r}; there are: {', '.join(DEMOS)}")
    run: Callable[[Work], None] = import_module(f"statewise.cli.demos.{name}").run
    return run
