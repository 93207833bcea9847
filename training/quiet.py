"""Silence for what Lightning and torch say to their own developers; everything else is still heard."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
"""Device tables, tips and advertisements come as INFO through these two."""

_WARNINGS = {
    "The `?train_dataloader`? does not have many workers": "batches come from memory",
    ".*does not have many workers which may be a bottleneck": "the same, of validation",
    "The number of training batches .* is smaller than the logging interval": "rows come later",
    "Checkpoint directory .* exists and is not empty": "it is our own, and resuming is the point",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated": "between Lightning and torch",
    "You're resuming from a checkpoint that ended before the epoch": "batches follow from the step",
    "Found \\d+ module\\(s\\) in eval mode": "modules without parameters of their own",
}


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within, only warnings that concern the user come through."""
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
