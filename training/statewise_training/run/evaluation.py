"""Figures of a finished run: the kept weights on the held-out data, and baselines."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import BaseModel

from statewise_training.checkpoints.checkpoint import Checkpoint
from statewise_training.data.chunks import Chunks, InOrder
from statewise_training.data.dataset import Dataset
from statewise_training.data.pairs.batches import Pairs
from statewise_training.run.baselines import (
    bigram_bits,
    frequency_nats,
    independent_nats,
    last_value_error,
    last_value_nats,
    mean_value_error,
    unigram_bits,
)
from statewise_training.run.exact_match import exact_match
from statewise_training.run.label_figures import LabelFigures
from statewise_training.run.label_measure import answer_figures
from statewise_training.run.module import run_batch


class Summary(BaseModel):
    """Record in `summary.json`."""

    name: str
    plugin: str
    parameters: int
    steps: int
    best_step: int
    seconds: float
    """Training time in seconds, over all attempts of a resumed run."""
    steps_per_second: float
    validation_loss: float
    """Loss of the kept weights over the held-out data, in chunks of `trainer.sequence_length` from zero state."""
    unit: str
    held_out_items: int
    held_out_characters: int | None = None
    bits_per_character: float | None = None
    exact_match: float | None = None
    """Pairs: share of held-out sources whose greedy output is the target."""
    exact_match_pairs: int | None = None
    """Number of pairs decoded for the exact match."""
    baselines: dict[str, float]
    """Baselines in the same measure: bits per character for text, accuracy for labels, else the validation loss."""
    baseline_loss: float | None = None
    """Validation loss of a prediction that ignores the input, such as token frequencies; embeddings have none."""
    accuracy: float | None = None
    """Share of the held-out labels predicted correctly; for embeddings, by the nearest mean of a label."""
    macro_f1: float | None = None
    """Mean F1 over all labels that are held out or predicted."""
    labels: dict[str, LabelFigures] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Confusion matrix: true label by row, predicted by column, in the order of `labels`."""
    data_sha256: str
    initialized_from: str | None = None


@torch.inference_mode()
def held_out_loss(checkpoint: Checkpoint, chunks: Chunks, batch_size: int) -> float:
    """Mean loss per item over the chunks, each from zero state."""
    spec = checkpoint.plugin.spec(checkpoint.config)
    total = 0.0
    for batch in InOrder(chunks, batch_size):
        output = run_batch(checkpoint.module, spec, batch)
        loss = checkpoint.plugin.loss(checkpoint.config, output, batch.targets, batch.mask)
        total += float(loss) * batch.num_predictions
    return total / chunks.num_predictions


def measure(checkpoint: Checkpoint, dataset: Dataset, batch_size: int) -> dict[str, Any]:
    """Return the summary's fields that depend on weights and data."""
    loss = held_out_loss(checkpoint, dataset.held_out, batch_size)
    items = dataset.held_out.num_predictions
    figures: dict[str, Any] = {
        "validation_loss": loss,
        "held_out_items": items,
        "parameters": sum(parameter.numel() for parameter in checkpoint.module.parameters()),
        "data_sha256": dataset.sha256,
    }
    if dataset.is_labelled:
        answers = answer_figures(checkpoint, dataset, batch_size)
        return {**figures, **answers, "baseline_loss": _answer_baseline(checkpoint, dataset, answers)}
    train, held_out, size = dataset.train_documents, dataset.held_out_documents, dataset.item_size
    if checkpoint.plugin.spec(checkpoint.config).head.kind == "mixture":
        baselines = {"random_walk": last_value_nats(train, held_out), "gaussian": independent_nats(train, held_out)}
        return {**figures, "unit": "nats per item", "baselines": baselines, "baseline_loss": baselines["gaussian"]}
    if dataset.held_out_characters is None:
        baselines = {"last_value": last_value_error(held_out), "mean": mean_value_error(train, held_out)}
        return {
            **figures,
            "unit": "squared error per value",
            "baselines": baselines,
            "baseline_loss": baselines["mean"],
        }
    characters = dataset.held_out_characters
    if isinstance(dataset.held_out, Pairs):
        spec = checkpoint.plugin.spec(checkpoint.config)
        share, count = exact_match(checkpoint.module, spec, dataset.held_out, batch_size)
        figures |= {"exact_match": share, "exact_match_pairs": count}
    unigram = unigram_bits(train, held_out, size)
    return {
        **figures,
        "unit": "nats per item",
        "baseline_loss": unigram * math.log(2) / items,
        "held_out_characters": characters,
        "bits_per_character": loss / math.log(2) * items / characters,
        "baselines": {
            "unigram": unigram / characters,
            "bigram": bigram_bits(train, held_out, size) / characters,
        },
    }


def _answer_baseline(checkpoint: Checkpoint, dataset: Dataset, answers: dict[str, Any]) -> float | None:
    """Loss of predicting the frequencies of the training labels, or their mean; None for embeddings."""
    if dataset.spec.labels is None:
        return float(answers["baselines"]["mean"])
    if checkpoint.plugin.spec(checkpoint.config).head.kind == "embedding":
        return None
    targets = dataset.train.targets.numpy(), dataset.held_out.targets.numpy()
    return frequency_nats(*targets, len(dataset.spec.labels))
