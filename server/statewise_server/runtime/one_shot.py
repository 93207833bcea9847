"""Runs a graph that reads whole sequences at once: no state, one answer for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import OneShotGraph
from statewise.bundles.reader import Bundle
from statewise.model.graph_io import ITEMS, LENGTHS
from statewise.model.spec import InputSpec, TokenInput
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session

Array = NDArray[Any]
SMALLEST_BUCKET = 16

_FEWER = {"time": 0, "previous": 1}
"""Dimensions of an output that follow the row's length, and by how much they fall short of it."""


def bucket_of(length: int, max_positions: int | None) -> int:
    """The width that a sequence of this length is padded to: 16, 32, 64 and so on, up to the model's number.

    It depends on nothing but the sequence, so that padding never makes an answer depend on the company.
    """
    bucket = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return bucket if max_positions is None else min(bucket, max_positions)


def pad_rows(rows: Sequence[Array], width: int) -> tuple[Array, NDArray[np.int64]]:
    """Sequences `[time]` or `[time, features]` as one array `[row, width, ...]`, right-padded, and their lengths."""
    items = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for index, row in enumerate(rows):
        items[index, : len(row)] = row
    return items, np.array([len(row) for row in rows], np.int64)


class OneShotRunner:
    """One graph of one variant in memory."""

    def __init__(self, reads: InputSpec, max_positions: int | None, session: onnxruntime.InferenceSession) -> None:
        self.reads = reads
        self.max_positions = max_positions
        self._session = session
        self._shapes = {output.name: output.shape for output in session.get_outputs()}

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        variant_name: str,
        graph: OneShotGraph,
        *,
        intra_op_threads: int = 0,
        device: str | None = None,
    ) -> OneShotRunner:
        """Load one graph of a variant, for its own device unless another one is named.

        The variant must have it. Raises BundleError where the device is not available, or ONNX Runtime refuses it.
        """
        variant = bundle.variant(variant_name)
        file = variant.one_shot_graphs[graph]
        session = create_session(bundle.path(file), device=device or variant.device, intra_op_threads=intra_op_threads)
        spec = bundle.spec(variant_name)
        return cls(spec.input, spec.max_positions, session)

    def run(self, items: Array, lengths: NDArray[np.int64]) -> dict[str, Array]:
        """Run right-padded sequences, `items` `[row, time]` or `[row, time, features]`, `lengths` `[row]`.

        Returns every output of the graph by its name; `cut` takes a row's part of them.
        """
        results = self._session.run(list(self._shapes), {ITEMS: items, LENGTHS: lengths})
        return dict(zip(self._shapes, results, strict=True))

    def cut(self, outputs: dict[str, Array], row: int, length: int) -> dict[str, Array]:
        """One row of the outputs, in memory of its own, without what stands for padding."""
        return {name: values[self._part(name, row, length)].copy() for name, values in outputs.items()}

    def run_rows(self, rows: Sequence[Array], width: int) -> list[dict[str, Array]]:
        """Run sequences padded to one width; the outputs of each."""
        items, lengths = pad_rows(rows, width)
        outputs = self.run(items, lengths)
        return [self.cut(outputs, row, len(items)) for row, items in enumerate(rows)]

    def num_numbers(self, length: int) -> int:
        """Numbers in all outputs of one row of this length."""
        sizes = ([self._size(size, length) for size in shape[1:]] for shape in self._shapes.values())
        return sum(math.prod(row) for row in sizes)

    def bucket_of(self, length: int) -> int:
        """The width that a sequence of this length is padded to."""
        return bucket_of(length, self.max_positions)

    def warm_up(self) -> None:
        """Run once on zeros: the first request does not pay for it, and a broken graph is seen now."""
        length = min(2, self.max_positions or 2)
        if isinstance(self.reads, TokenInput):
            row: Array = np.zeros(length, np.int64)
        else:
            row = np.zeros((length, self.reads.features), np.float32)
        self.run_rows([row], self.bucket_of(length))

    @staticmethod
    def _size(size: int | str, length: int) -> int:
        return size if isinstance(size, int) else length - _FEWER.get(size, 0)

    def _part(self, name: str, row: int, length: int) -> tuple[int | slice, ...]:
        sizes = self._shapes[name][1:]
        return row, *(slice(length - _FEWER[size]) if size in _FEWER else slice(None) for size in sizes)
