"""Check that a run has learnt something: its validation loss against a prediction that ignores the input."""

from __future__ import annotations

from rich.console import Console

from statewise.errors import DivergedError
from statewise_training.config import TrainConfig
from statewise_training.run.evaluation import Summary

_PREDICTORS = {
    "unigram": "token frequencies alone",
    "gaussian": "one Gaussian of all items",
    "mean": "the mean of the training data",
    "most_frequent_label": "label frequencies alone",
}
"""Predictor behind `Summary.baseline_loss`, by the name of the baseline in the summary."""


def check_learnt(summary: Summary, config: TrainConfig, console: Console) -> None:
    """Raise DivergedError where the kept weights are worse than the baseline, unless the configuration allows it.

    A run in closed form takes no steps, and cannot diverge.
    """
    baseline = summary.baseline_loss
    if not summary.steps or baseline is None or summary.validation_loss <= baseline:
        return
    # An overconfident classifier can have a high loss and still be far more accurate than guessing.
    if summary.accuracy is not None and summary.accuracy > summary.baselines["most_frequent_label"]:
        return
    predictor = next(described for name, described in _PREDICTORS.items() if name in summary.baselines)
    finding = f"validation loss {summary.validation_loss:.4f} {summary.unit}, worse than {baseline:.4f} by {predictor}"
    if config.trainer.allow_diverged:
        console.print(f"{finding} (allowed by trainer.allow_diverged)", highlight=False, soft_wrap=True)
        return
    raise DivergedError(
        f"training has diverged, or was too short to learn: {finding}; lower optimizer.learning_rate or raise "
        f"trainer.max_steps or max_epochs; or accept it with --set trainer.allow_diverged=true. The checkpoint in "
        f"{config.folder} is kept, and can be exported"
    )
