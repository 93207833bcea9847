"""Silencing of Lightning's and torch's messages to their own developers; all others pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)
"""Loggers that emit device tables, tips and advertisements as INFO."""

_WARNINGS = {
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated": "a matter between Lightning and torch",
    "RNN module weights are not part of single contiguous chunk": "locked dropout runs layers one by one on CUDA",
    "Checkpoint directory .* exists and is not empty": "resuming is the point",
    "It is recommended to use `self.log\\('validation_loss'": "every device measures all of the held-out data",
}
"""Beginnings of warnings that do not concern the user, with reasons."""


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let through only the warnings that concern the user, inside the block."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
