"""The reference for what is said of whole sequences: PyTorch, eager, one sequence at a time, without padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.model.spec import MixtureHead
from statewise.modules import Embeds, Inspects, require
from statewise.rules.mixture import log_density
from statewise.rules.sampling import log_softmax
from statewise_training.reference.decoding import ReferenceDecoder

Array = NDArray[Any]


class ReferencePredictor:
    """Answers as the graphs `predict`, `score` and `inspect` do."""

    def __init__(self, decoder: ReferenceDecoder) -> None:
        self.spec = decoder.spec
        self._decoder = decoder

    @torch.inference_mode()
    def predict(self, row: Array) -> NDArray[np.float32]:
        """Predict a sequence: `[size]`, or `[time, labels]` where every item has a label."""
        step, items, lengths = self._decoder.step, torch.from_numpy(np.array(row))[None], torch.tensor([len(row)])
        if self.spec.generates:
            answer = require(step, Embeds).embed(items, lengths)
        else:
            answer = step.head(step(items, lengths, ())[0])
        return answer[0].numpy()

    @torch.inference_mode()
    def inspect(self, row: Array) -> dict[str, NDArray[np.float32]]:
        """Inspect a sequence: tensors by name, `[head, query, key]` or `[time, unit]`."""
        module, items = require(self._decoder.step, Inspects), torch.from_numpy(np.array(row))[None]
        shown = module.inspect(items, torch.tensor([len(row)]))
        return {name: tensor[0].numpy() for name, tensor in shown.items()}

    def outputs(self, row: Array) -> NDArray[np.float32]:
        """Outputs at every item of a sequence, `[time, size]`."""
        return self._decoder.outputs([row])[0]

    def score(self, row: Array) -> NDArray[np.float32]:
        """Log-probability of each item but the first, `[time - 1]`."""
        return self.log_probabilities(self.outputs(row), row)

    def log_probabilities(self, outputs: NDArray[np.float32], row: Array) -> NDArray[np.float32]:
        """Log-probabilities of all items but the first, `[time - 1]`, by the outputs `[time, size]` before them."""
        if isinstance(self.spec.head, MixtureHead):
            return np.asarray(log_density(outputs[:-1], row[1:], self.spec.head), np.float32)
        every = log_softmax(outputs[:-1].astype(np.float64))
        return every[np.arange(len(row) - 1), row[1:]].astype(np.float32)
