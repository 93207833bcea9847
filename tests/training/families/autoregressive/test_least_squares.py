"""Autoregression of real vectors in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from statewise.plugins import load_plugin
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.families.autoregressive.least_squares import least_squares
from statewise_training.run.run import train
from tests.training.runs import error, small_config

Vectors = np.ndarray[Any, np.dtype[np.float32]]

A1, A2 = np.array([[0.5, 0.2], [-0.3, 0.4]]), np.array([[0.2, 0.0], [0.1, -0.3]])
"""Coefficients of the last item and of the one before it."""
INTERCEPT = np.array([4.0, -1.0])


def simulate(coefficients: list[Any], intercept: Any, time: int, seed: int, noise: float = 1.0) -> Vectors:
    """A series in which each item is intercept + coefficients[0] @ last + coefficients[1] @ the one before + noise."""
    rng = np.random.default_rng(seed)
    matrices = [np.atleast_2d(matrix) for matrix in coefficients]
    series = [np.zeros(len(matrices[0]))] * len(matrices)
    for _ in range(time + 200):  # the beginning is left out: it is not yet typical
        past = sum(matrix @ item for matrix, item in zip(matrices, reversed(series), strict=False))
        series.append(intercept + past + noise * rng.standard_normal(len(matrices[0])))
    return np.array(series[-time:], np.float32)


def series_config(folder: Path, series: Vectors, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "series.npy", series)
    data = {"kind": "series", "files": [str(folder / "series.npy")], **changes.pop("data", {})}
    model = {"window": 1, "fit": "least_squares", **changes.pop("model", {})}
    return small_config(folder, plugin="autoregressive", model=model, data=data, **changes)


@pytest.mark.parametrize("standardize", [False, True])
def test_ar_1_recovers_the_coefficients_of_a_simulated_series(tmp_path: Path, standardize: bool) -> None:
    """X = 2 + 0.8 x' + noise of variance 0.25, mean 10: through a whole run, in raw or standardised units."""
    series = simulate([0.8], 2.0, 20_000, seed=5, noise=0.5)
    config = series_config(tmp_path, series, data={"standardize": standardize})
    summary = train(config, console=Console(quiet=True))
    checkpoint = load_checkpoint(config.folder)
    spec = checkpoint.plugin.spec(checkpoint.config)
    module = checkpoint.in_raw_units()

    hidden, _ = module(torch.tensor([[[0.0], [10.0]]]), torch.tensor([2]), (torch.zeros(1, *spec.state[0].shape[1:]),))
    at_0, at_10 = module.head(hidden)[0, :, 0].tolist()
    unit = checkpoint.standardization.deviation[0] ** 2 if checkpoint.standardization else 1.0

    assert summary is not None
    assert (at_10 - at_0) / 10 == pytest.approx(0.8, abs=0.015)
    assert at_0 == pytest.approx(2.0, abs=0.15)
    assert summary.validation_loss * unit == pytest.approx(0.25, rel=0.06)
    assert summary.validation_loss < min(summary.baselines.values())


def test_a_vector_autoregression_recovers_its_matrices() -> None:
    """Coefficients stand side by side, those of the oldest item first; the intercept belongs to items less the mean."""
    documents = [simulate([A1, A2], INTERCEPT, 4000, seed=seed) for seed in range(3)]

    mean, coefficients, intercept = least_squares(documents, window=2)

    assert np.abs(coefficients - np.hstack([A2, A1])).max() < 0.03
    assert np.abs(intercept - coefficients @ np.tile(mean, 2) - INTERCEPT).max() < 0.15


def test_pieces_give_what_all_equations_give_at_once() -> None:
    """In pieces of a few rows, over ragged documents, the solution is that of one large system."""
    documents = [simulate([A1, A2], INTERCEPT, time, seed=time) for time in (57, 3, 4, 200, 5)]
    mean = np.concatenate(documents).mean(axis=0, dtype=np.float64)
    rows = [
        np.concatenate([[1.0], *(document[at - 3 : at] - mean)])
        for document in documents
        for at in range(3, len(document))
    ]
    targets = np.concatenate([document[3:] for document in documents])
    expected = np.linalg.lstsq(np.array(rows), targets, rcond=None)[0]

    _, coefficients, intercept = least_squares(documents, 3, piece_numbers=40)

    assert np.abs(coefficients - expected[1:].T).max() < 1e-9
    assert np.abs(intercept - expected[0]).max() < 1e-9


def test_a_smooth_series_keeps_its_digits() -> None:
    """A sum of two sines obeys a linear recurrence of order 4: it is found, though all equations are nearly alike."""
    time = np.arange(2000)
    series = (np.sin(0.01 * time) + np.sin(0.013 * time))[:, None]
    mean, coefficients, intercept = least_squares([series], 4)

    windows = np.lib.stride_tricks.sliding_window_view(series[:-1, 0], 4) - mean
    predicted = windows @ coefficients[0] + intercept

    assert np.abs(predicted - series[4:, 0]).max() < 1e-9


def test_gradient_descent_ends_near_least_squares(tmp_path: Path) -> None:
    """The trainer's loss on standardised data is within 2% of the closed form's."""
    series = simulate([0.8], 2.0, 2000, seed=6)
    losses = []
    for fit in ("least_squares", "gradient"):
        config = series_config(
            tmp_path / fit,
            series,
            data={"standardize": True},
            model={"fit": fit},
            optimizer={"learning_rate": 0.05},
            trainer={"max_steps": 60, "batch_size": 16, "sequence_length": 30, "accelerator": "cpu"},
        )
        summary = train(config, console=Console(quiet=True))
        assert summary is not None
        losses.append(summary.validation_loss)

    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_too_few_items_are_refused(tmp_path: Path) -> None:
    """Where the data leaves coefficients open, both numbers and the remedy are told."""
    message = error(series_config(tmp_path, simulate([0.5], 0.0, 40, seed=1), model={"window": 18}))

    assert "model.window: 18 gives least squares 19 unknowns" in message
    assert "18 items" in message
    assert "lower it" in message


def test_fit_leaves_what_is_trained_by_gradient_alone() -> None:
    """By default there is no closed form, and no weight changes."""
    plugin = load_plugin("autoregressive")
    config = plugin.config_class(features=1)
    module = plugin.build(config)
    before = module.output.weight.clone()

    assert not plugin.fit(module, config, [simulate([0.5], 0.0, 40, seed=1)])
    assert torch.equal(module.output.weight, before)
