"""Figures of the kept weights on the held-out sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statewise_training.checkpoints.checkpoint import Checkpoint
from statewise_training.data.chunks import InOrder
from statewise_training.data.dataset import Dataset
from statewise_training.data.labelled.sequences import LabelledSequences
from statewise_training.run.label_figures import count_labels, figures_of, predictions
from statewise_training.run.module import run_batch


@torch.inference_mode()
def answer_figures(checkpoint: Checkpoint, dataset: Dataset, batch_size: int) -> dict[str, Any]:
    """Return the summary's fields for labels, embeddings or values."""
    names = dataset.spec.labels
    if names is None:
        return {"unit": "squared error per value", "baselines": {"mean": _mean_error(dataset)}}
    train = count_labels(dataset.train, len(names))
    if checkpoint.plugin.spec(checkpoint.config).head.kind == "embedding":
        labels = _nearest_means(checkpoint, dataset, batch_size)
        return {"unit": "nats of contrast", **figures_of(labels, dataset.held_out.targets, train, names)}
    pairs = [predictions(output, batch) for output, batch in _answers(checkpoint, dataset.held_out, batch_size)]
    labels, targets = map(torch.cat, zip(*pairs, strict=True))
    return {"unit": "nats per label", **figures_of(labels, targets, train, names)}


def _answers(checkpoint: Checkpoint, sequences: LabelledSequences, batch_size: int) -> Any:
    spec = checkpoint.plugin.spec(checkpoint.config)
    return ((run_batch(checkpoint.module, spec, batch), batch) for batch in InOrder(sequences, batch_size))


def _mean_error(dataset: Dataset) -> float:
    mean = dataset.train.targets.mean(dim=0)
    return float((dataset.held_out.targets - mean).square().mean())


def _nearest_means(checkpoint: Checkpoint, dataset: Dataset, batch_size: int) -> Tensor:
    """Predict labels `[n]` by the nearest mean of a label's training embeddings (Snell et al. 2017)."""
    names = dataset.spec.labels or ()
    train = torch.cat([output for output, _ in _answers(checkpoint, dataset.train, batch_size)])
    means = torch.zeros(len(names), train.shape[1]).index_add(0, dataset.train.targets, train)
    means = torch.nn.functional.normalize(means, dim=1)
    held_out = torch.cat([output for output, _ in _answers(checkpoint, dataset.held_out, batch_size)])
    return (held_out @ means.T).argmax(dim=1)
