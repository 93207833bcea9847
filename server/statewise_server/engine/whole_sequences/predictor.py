"""The one-shot graphs of a model, which read whole sequences; each is loaded at its first use."""

from __future__ import annotations

import threading
import time

from tokenizers import Tokenizer

from statewise.bundles.manifest import Manifest, OneShotGraph
from statewise.bundles.reader import Bundle
from statewise.errors import InvalidRequestError, UnavailableError
from statewise.model.spec import CategoricalHead, MixtureHead
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.whole_sequences.batcher import Batcher
from statewise_server.runtime.one_shot import OneShotRunner

MAX_SCORE_NUMBERS = 2**25
"""Outputs of one run of a score graph, before they become one number for each item: 128 MiB, of which it holds two."""

_RPCS: dict[OneShotGraph, str] = {"predict": "Predict", "score": "Score", "inspect": "Inspect"}
_WITHOUT: dict[OneShotGraph, str] = {
    "predict": "it only generates; use Generate",
    "score": "Score is for models that generate tokens or mixtures from a prompt alone",
    "inspect": "export it with `statewise export --inspect`",
}


class Predictor:
    """The one-shot graphs of one bundle variant; safe to use from any thread."""

    def __init__(
        self, bundle: Bundle, variant_name: str, settings: EngineSettings, tokenizer: Tokenizer | None = None
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.variant_name = variant_name
        self.settings = settings
        self.tokenizer = tokenizer
        self._bundle = bundle
        self._batchers: dict[OneShotGraph, Batcher] = {}
        self._is_loading = threading.Lock()
        self._is_closed = False

    @property
    def max_items(self) -> int:
        """Items of the longest sequence that may be sent, a start token included."""
        bounds = (self.manifest.model.max_positions, self.settings.max_positions)
        own = min((bound for bound in bounds if bound is not None), default=self.settings.max_prompt_tokens)
        return min(own, self.settings.max_prompt_tokens, self.settings.max_batch_tokens)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the rpcs that ask for its graphs."""
        return tuple(_RPCS[graph] for graph in self._bundle.variant(self.variant_name).one_shot_graphs)

    @property
    def batchers(self) -> dict[OneShotGraph, Batcher]:
        """Batchers of the graphs that are loaded."""
        return dict(self._batchers)

    @property
    def is_healthy(self) -> bool:
        """Whether all that is loaded works."""
        return all(batcher.is_healthy for batcher in self.batchers.values())

    def batcher(self, graph: OneShotGraph) -> Batcher:
        """The batcher of one graph; its first use loads the graph, which takes seconds for a large one.

        Raises InvalidRequestError where the model has no such graph, naming what it has, UnavailableError where the
        server is stopping, BundleError where ONNX Runtime refuses it.
        """
        if graph in self._batchers:
            return self._batchers[graph]
        if graph not in self._bundle.variant(self.variant_name).one_shot_graphs:
            reason = _WITHOUT[graph] if self.manifest.model.generates or graph == "inspect" else "use Predict"
            raise InvalidRequestError(f"{self.manifest.name!r} cannot {_RPCS[graph]}: {reason}", field="model")
        with self._is_loading:
            if self._is_closed:
                raise UnavailableError(f"model {self.manifest.name!r} is stopping; try another replica")
            if graph not in self._batchers:
                self._batchers[graph] = self._load(graph)
            return self._batchers[graph]

    def describe(self) -> str:
        """Describe the batching of sequences on one line."""
        settings = self.settings
        return (
            f"batches of up to {settings.max_batch_rows} sequences and {settings.max_batch_tokens} items, "
            f"sequences of up to {self.max_items}"
        )

    def drain(self, grace: float) -> None:
        """Accept nothing more and wait until all are answered, at most `grace` seconds."""
        end = time.monotonic() + grace
        for batcher in self._close_doors():
            batcher.drain(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """End every thread; those that still wait fail with UnavailableError."""
        for batcher in self._close_doors():
            batcher.close()

    def _close_doors(self) -> list[Batcher]:
        with self._is_loading:
            self._is_closed = True
            return list(self._batchers.values())

    def _load(self, graph: OneShotGraph) -> Batcher:
        threads = self.settings.intra_op_threads
        runner = OneShotRunner.load(self._bundle, self.variant_name, graph, intra_op_threads=threads)
        runner.warm_up()
        return Batcher(self.manifest.name, runner, self.settings, self._token_budget(graph))

    def _token_budget(self, graph: OneShotGraph) -> int:
        head = self.manifest.model.head
        if graph == "score" and isinstance(head, CategoricalHead | MixtureHead):
            return min(self.settings.max_batch_tokens, MAX_SCORE_NUMBERS // head.output_size)
        # Inspect one sequence per batch; its output is already large.
        return 1 if graph == "inspect" else self.settings.max_batch_tokens
