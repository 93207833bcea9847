"""The held-out split, chunks of documents in memory, and the endless stream of training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec
from statewise_training.data.corpus import Series

Body = TypeVar("Body", str, Series)
Items = NDArray[np.int32] | NDArray[np.float32]

_ENOUGH_DOCUMENTS = 20
"""Number of documents from which whole ones are held out; with fewer, the end of each."""


@dataclass(frozen=True)
class Document(Generic[Body]):
    """A document, or the part of one on one side of the split."""

    body: Body
    has_start: bool = True
    """Whether this part begins with the document's first item."""
    has_end: bool = True


def split(bodies: Sequence[Body], held_out: float, seed: int) -> tuple[list[Document[Body]], list[Document[Body]]]:
    """Return training and held-out documents; the second has about `held_out` of all items.

    Raises ConfigError where one of the two would be empty.
    """
    if len(bodies) >= _ENOUGH_DOCUMENTS:
        train, other = _split_documents(bodies, held_out, seed)
    else:
        train, other = _split_ends(bodies, held_out)
    for part, name in ((train, "training"), (other, "held-out")):
        if not any(len(document.body) > 1 for document in part):
            total = sum(map(len, bodies))
            raise ConfigError(
                f"data.held_out: {held_out} of {total} items leaves no {name} data; change it or add data"
            )
    return train, other


def _split_documents(
    bodies: Sequence[Body], held_out: float, seed: int
) -> tuple[list[Document[Body]], list[Document[Body]]]:
    budget = held_out * sum(map(len, bodies))
    chosen: set[int] = set()
    for index in np.random.default_rng(seed).permutation(len(bodies)):
        if len(bodies[index]) <= budget:
            chosen.add(int(index))
            budget -= len(bodies[index])
    documents = [Document(body) for body in bodies]
    train = [document for index, document in enumerate(documents) if index not in chosen]
    return train, [documents[index] for index in sorted(chosen)]


def _split_ends(bodies: Sequence[Body], held_out: float) -> tuple[list[Document[Body]], list[Document[Body]]]:
    train, other = [], []
    for body in bodies:
        cut = len(body) - max(1, round(held_out * len(body)))
        train.append(Document(body[:cut], has_end=False))
        other.append(Document(body[cut:], has_start=cut == 0))
    return train, other


class Batch(NamedTuple):
    """One step's data; the shapes are those of `statewise.plugins.Batch`."""

    items: Tensor
    targets: Tensor
    mask: Tensor
    source: Tensor | None = None
    source_lengths: Tensor | None = None
    per_sequence: bool = False
    """Whether each row has one target, rather than each item."""
    num_added: int = 0
    """Number of real items per row that `mask` leaves out: the special tokens around a text."""

    @property
    def lengths(self) -> Tensor:
        """Number of real items in each row."""
        return self.mask.sum(1) + self.num_added

    @property
    def num_predictions(self) -> int:
        """Number of targets."""
        return len(self.items) if self.per_sequence else int(self.mask.sum())


class Chunks:
    """Documents in pieces of `sequence_length` predictions; every item but a document's first is predicted."""

    def __init__(self, documents: Sequence[Items], sequence_length: int) -> None:
        starts: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.int64]] = []
        offset = 0
        for document in documents:
            first = np.arange(0, max(len(document) - 1, 0), sequence_length)
            starts.append(first + offset)
            lengths.append(np.minimum(sequence_length, len(document) - 1 - first))
            offset += len(document)
        self.sequence_length = sequence_length
        self.items = torch.from_numpy(np.concatenate(documents))
        self.starts = torch.from_numpy(np.concatenate(starts))
        self.lengths = torch.from_numpy(np.concatenate(lengths))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_predictions(self) -> int:
        """Items predicted in one pass."""
        return int(self.lengths.sum())

    def check_fits(self, spec: ModelSpec) -> None:
        """Raise ConfigError where a chunk is longer than the model takes."""
        if spec.max_positions is not None and self.sequence_length > spec.max_positions:
            raise ConfigError(
                f"trainer.sequence_length: {self.sequence_length} items do not fit the model's {spec.max_positions} "
                "positions; lower it, or raise model.max_positions"
            )

    def batch(self, indices: Tensor) -> Batch:
        """Return these chunks, right-padded with zeros."""
        lengths = self.lengths[indices]
        time = torch.arange(int(lengths.max()) + 1)
        # The padding of a short chunk would read the next document, or past the end: clamp, then blank it.
        window = self.items[(self.starts[indices][:, None] + time).clamp(max=len(self.items) - 1)]
        mask = time[:-1] < lengths[:, None]
        if not window.is_floating_point():
            window = window.long()
        padding = ~mask.view(*mask.shape, *[1] * (window.ndim - 2))
        items, targets = (part.masked_fill(padding, 0) for part in (window[:, :-1], window[:, 1:]))
        return Batch(items, targets, mask)


class TrainingStream:
    """Endless shuffled batches; batch `k` depends on the seed and `k` alone.

    A run resumed at step `k` therefore gets the same batch as an unbroken one. Epochs follow one
    another without a gap: each has every chunk once, and every batch is full.
    """

    def __init__(self, chunks: Chunks, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.chunks = chunks
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps, over all devices together, that use each chunk once."""
        return len(self.chunks) / (self.batch_size * self.world_size)

    def batch(self, step: int) -> Batch:
        """Return this device's share of a step's batch."""
        first = (step * self.world_size + self.rank) * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), len(self.chunks))
        parts = [self._shuffled(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.chunks.batch(torch.cat(parts))

    def _shuffled(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch = epoch
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.chunks))
            self._order = torch.from_numpy(order)
        return self._order


class Rounds:
    """Batches for Lightning to iterate over: one pass goes from the current step to the end of its round."""

    def __init__(
        self, stream: TrainingStream, *, steps_per_round: int, num_steps: int, current_step: Callable[[], int]
    ) -> None:
        self.stream = stream
        self.steps_per_round = steps_per_round
        self.num_steps = num_steps
        self.current_step = current_step

    @property
    def num_rounds(self) -> int:
        """Number of rounds in the whole run; the last may be shorter."""
        return -(-self.num_steps // self.steps_per_round)

    def __iter__(self) -> Iterator[Batch]:
        start = self.current_step()
        for step in range(start, min(start + self.steps_per_round, self.num_steps)):
            yield self.stream.batch(step)


class InOrder:
    """All chunks once, in their order, for evaluation."""

    def __init__(self, chunks: Chunks, batch_size: int) -> None:
        self.chunks = chunks
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.chunks) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.chunks), self.batch_size):
            yield self.chunks.batch(torch.arange(start, min(start + self.batch_size, len(self.chunks))))
