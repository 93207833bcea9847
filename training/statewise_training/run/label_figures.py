"""Figures of predicted labels: accuracy, precision, recall, F1, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from statewise_training.data.chunks import Batch
from statewise_training.data.labelled.sequences import LabelledSequences

Counts = NDArray[np.int64]


class LabelFigures(BaseModel):
    """Figures of one label on the held-out data."""

    precision: float
    recall: float
    f1: float
    held_out: int
    """Number of occurrences in the held-out data."""
    train: int
    """Number of occurrences in the training part."""


def predictions(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Most probable label and true label of every real sequence or item, `[n]` each."""
    labels = output.argmax(dim=-1)
    if batch.per_sequence:
        return labels, batch.targets
    return labels[batch.mask], batch.targets[batch.mask]


def label_accuracy(output: Tensor, batch: Batch) -> Tensor:
    """Share of a batch's labels that are predicted correctly."""
    labels, targets = predictions(output, batch)
    return (labels == targets).float().mean()


def count_labels(sequences: LabelledSequences, num_labels: int) -> Counts:
    """Count the occurrences of each label, `[label]`."""
    return np.bincount(sequences.targets.numpy(), minlength=num_labels)


def class_balance(sequences: LabelledSequences, names: Sequence[str], most: int = 12) -> str:
    """Describe the labels with their shares, the most frequent first."""
    counts = count_labels(sequences, len(names))
    order = np.argsort(-counts, kind="stable")
    shares = [f"{names[index]} {counts[index] / counts.sum():.1%}" for index in order[:most]]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join(shares + more)


def figures_of(labels: Tensor, targets: Tensor, train: Counts, names: Sequence[str]) -> dict[str, object]:
    """Figures of predicted `labels` against `targets`, `[n]` each; `train` counts the labels in the training part.

    Labels that neither occur nor are predicted do not count in the macro average.
    """
    num_labels = len(names)
    shared = {"num_classes": num_labels, "validate_args": False}
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(average="micro", **shared),
            "macro_f1": MulticlassF1Score(average="macro", **shared),
            "precision": MulticlassPrecision(average="none", **shared),
            "recall": MulticlassRecall(average="none", **shared),
            "f1": MulticlassF1Score(average="none", **shared),
            "confusion": MulticlassConfusionMatrix(**shared),
        },
        compute_groups=False,
    )
    measured = metrics(labels, targets)
    held_out = measured["confusion"].sum(dim=1)
    columns = (measured[figure].tolist() for figure in ("precision", "recall", "f1"))
    return {
        "accuracy": float(measured["accuracy"]),
        "macro_f1": float(measured["macro_f1"]),
        "labels": {
            name: LabelFigures(precision=p, recall=r, f1=f, held_out=h, train=t)
            for name, p, r, f, h, t in zip(names, *columns, held_out.tolist(), train.tolist(), strict=True)
        },
        "confusion": tuple(map(tuple, measured["confusion"].tolist())),
        "baselines": {"most_frequent_label": float(held_out[train.argmax()] / held_out.sum())},
    }
