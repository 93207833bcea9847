"""Runs the graphs of one bundle over rows of the state pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.reader import Bundle
from statewise.model.graph_io import CHUNK, ITEMS, LENGTHS, OUTPUT, SOURCE, SOURCE_LENGTHS, STEPS, state_output
from statewise.model.spec import InputSpec, ModelSpec, TokenInput
from statewise_server.runtime.one_shot import bucket_of, pad_rows
from statewise_server.runtime.ort.cores import num_threads
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session, inputs_of_all
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.state.memory import HOST, Memory, bind, host_view
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.sampler_table import SamplerTable
from statewise_server.runtime.steps.state_runs import StateRuns
from statewise_server.runtime.steps.step_graph import load_step, step_graph

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of K steps for each row."""

    items: Array
    """int64 `[K, row]` token ids, -1 where logits were not finite; or float32 `[K, row, features]`."""
    log_probabilities: NDArray[np.float32] | None = None
    """`[K, row]`, of the chosen tokens or vectors; None where nothing is drawn."""
    top_tokens: NDArray[np.int64] | None = None
    """`[K, row, n]`, most probable first; None where there are no tokens."""
    top_log_probabilities: NDArray[np.float32] | None = None
    outputs: NDArray[np.float32] | None = None
    """`[row, output_size]`: the head's output of the last step, where asked for."""

    def is_finite(self, row: int) -> bool:
        """Whether no NaN or infinity of the row's state has reached its items."""
        made = self.items[:, row]
        return bool((made >= 0).all() if made.dtype == np.int64 else np.isfinite(made).all())


class Runner:
    """A bundle variant in memory: its sessions, the state of its rows and their sampling parameters."""

    def __init__(
        self,
        spec: ModelSpec,
        step: onnxruntime.InferenceSession,
        decode: onnxruntime.InferenceSession | None,
        max_rows: int,
        *,
        choose: onnxruntime.InferenceSession | None = None,
        captures: bool = False,
        mixed: onnxruntime.InferenceSession | None = None,
        encode: onnxruntime.InferenceSession | None = None,
        capacity: int | None = None,
        ragged_prefill: bool = True,
        memory: Memory = HOST,
    ) -> None:
        self.spec = spec
        capacity = (spec.max_positions or 0) if capacity is None else capacity
        # Graphs that take ragged rows mask the positions behind each row's end; the others do not read them.
        self.pool = StatePool(spec.sized_state, max_rows, capacity, memory, reads_ahead=ragged_prefill)
        choosing = [choose or step, *(session for session in (decode, mixed) if session is not None)]
        self.sampler = SamplerTable(max_rows, spec.head, inputs_of_all(choosing))
        self._decode = decode
        self._mixed = mixed
        self._encode = encode
        self._ragged_prefill = ragged_prefill
        self._runs = StateRuns()
        self._step = step_graph(spec, step, choose, self._runs, captures=captures)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        variant_name: str,
        *,
        max_rows: int,
        capacity: int | None = None,
        intra_op_threads: int = 0,
        with_mixed: bool = True,
        captures: bool = True,
        device: str | None = None,
    ) -> Runner:
        """Load the graphs of one variant, for its own device unless another one is named.

        `capacity`: positions for which the pool has room at first; the model's own number where absent.
        `with_mixed`: False leaves out the graph that prefills beside decoding. `captures`: False makes no CUDA graphs.
        Raises BundleError where the device is not available, or ONNX Runtime refuses a graph.
        """
        variant = bundle.variant(variant_name)
        device = device or variant.device
        intra_op_threads = num_threads(intra_op_threads, variant.max_threads)
        names = (variant.choose, variant.decode, variant.mixed if with_mixed else None, variant.encode)
        choose, decode, mixed, encode = (
            create_session(bundle.path(name), device=device, intra_op_threads=intra_op_threads) if name else None
            for name in names
        )
        assert variant.step is not None
        captures = captures and choose is not None
        step, captures = load_step(
            bundle.path(variant.step), device=device, intra_op_threads=intra_op_threads, captures=captures
        )
        return cls(
            bundle.spec(variant_name),
            step,
            decode,
            max_rows,
            choose=choose,
            captures=captures,
            mixed=mixed,
            encode=encode,
            capacity=capacity,
            ragged_prefill=variant.ragged_prefill,
            memory=HOST if device == "cpu" else DeviceMemory(device),
        )

    @property
    def can_decode_many(self) -> bool:
        """Whether one run can make several items per row."""
        return self._decode is not None

    @property
    def can_mix(self) -> bool:
        """Whether one run can feed a prompt's chunk beside the rows that decode."""
        return self._mixed is not None

    def warm_up(self) -> None:
        """Run every graph once on zeros: the first request does not pay for it, and a broken graph is seen now."""
        items = _zeros(self.spec.input)
        if self.spec.source is not None:
            self.encode(slice(0, 1), [_zeros(self.spec.source)[0]])
        self.step(slice(0, 1), items, np.ones(1, np.int64), self.sampler.no_noise(1, 1), num_rows=1)
        self._step.warm_up(self.pool)
        if self._decode is not None:
            self.decode(1, items, self.sampler.no_noise(1, 2), num_rows=1)
        if self._mixed is not None and self.pool.num_rows > 1:
            self.mixed(1, items, items, self.sampler.no_noise(2, 1), num_rows=2)
            self.pool.clear_row(1)
        self.pool.clear_row(0)

    def encode(self, rows: slice, sources: Sequence[Array]) -> None:
        """Give rows, which are clear, the state that a model with a source begins from.

        `sources`: of each row `[time]` or `[time, features]`, at least one item, at most `max_source_positions`. Rows
        whose sources have the same padded length are encoded in one run, so that nothing depends on the company.
        """
        start, longest = rows.start, self.spec.max_source_positions
        for width, group in groupby(sources, lambda source: bucket_of(len(source), longest)):
            items, lengths = pad_rows(list(group), width)
            self._run_encode(slice(start, start + len(items)), items, lengths)
            start += len(items)

    def _run_encode(self, rows: slice, source: Array, lengths: NDArray[np.int64]) -> None:
        assert self._encode is not None
        binding = self._encode.io_binding()
        bind(binding.bind_input, SOURCE, host_view(source))
        bind(binding.bind_input, SOURCE_LENGTHS, host_view(lengths))
        for name, buffer in self.pool.first_state.items():
            bind(binding.bind_output, state_output(name), self.pool.memory.view(buffer, rows))
        self._encode.run_with_iobinding(binding)

    def step(
        self,
        rows: slice,
        items: Array,
        lengths: NDArray[np.int64],
        noise: NDArray[np.float32],
        *,
        num_rows: int,
        with_outputs: bool = False,
    ) -> StepResult:
        """Feed new items to some rows and choose the item after each row's last one.

        `items` `[row, time]` or `[row, time, features]`, right-padded; `lengths` `[row]`, where a row with 0 keeps its
        state and gives nothing of meaning; `noise` `[row, 1, ...]`, as the sampler table gives it; `num_rows`: all rows
        in use.
        """
        wanted = self._wanted(with_outputs=with_outputs)
        if (lengths != 1).any() and not self._takes_together(rows, items.shape[1]):
            results = self._step_one_by_one(rows, items, lengths, noise, wanted, num_rows)
        else:
            inputs = {ITEMS: items, LENGTHS: lengths, **self.sampler.inputs(rows, noise)}
            results = self._step.run(self.pool, rows, inputs, wanted)
            self.pool.commit(rows, num_rows, lengths)
        return _one_step(results, with_outputs=with_outputs)

    def _takes_together(self, rows: slice, width: int) -> bool:
        """Whether one run may feed several items to several rows; their padding is written too."""
        if not self._ragged_prefill:
            return False
        return not self.pool.caches or int(self.pool.num_filled[rows].max()) + width <= self.pool.capacity

    def _step_one_by_one(
        self,
        rows: slice,
        items: Array,
        lengths: NDArray[np.int64],
        noise: NDArray[np.float32],
        wanted: list[str],
        num_rows: int,
    ) -> list[Array]:
        """Feed several items to rows, each row in a run of its own, without padding.

        ONNX Runtime's GroupQueryAttention appends several items to one row only, and has no row without items.
        """
        sampling = self.sampler.inputs(rows, noise)
        results: list[list[Array] | None] = []
        for index, length in enumerate(lengths.tolist()):
            one = slice(index, index + 1)
            row = slice(rows.start + index, rows.start + index + 1)
            inputs = {ITEMS: items[one, :length], LENGTHS: lengths[one]}
            inputs |= {name: value[one] if np.ndim(value) else value for name, value in sampling.items()}
            results.append(self._step.run(self.pool, row, inputs, wanted) if length else None)
            if length:
                self.pool.commit(row, num_rows, lengths[one])
        blank = [np.zeros_like(part) for part in next(result for result in results if result is not None)]
        return [np.concatenate(parts) for parts in zip(*(result or blank for result in results), strict=True)]

    def decode(self, num_decoding: int, items: Array, noise: NDArray[np.float32], *, num_rows: int) -> StepResult:
        """K single-item steps of rows 0..num_decoding-1, each step fed with the item before.

        `items` `[row, 1]` or `[row, 1, features]`; `noise` `[row, K, ...]`, K being 1 where the bundle has no decode
        graph; `num_rows`: all rows in use.
        """
        rows = slice(0, num_decoding)
        num_steps = noise.shape[1]
        if self._decode is None or num_steps == 1:
            return self.step(rows, items, np.ones(num_decoding, np.int64), noise, num_rows=num_rows)
        inputs = {ITEMS: items, STEPS: np.array(num_steps), **self.sampler.inputs(rows, noise)}
        results = self._runs.run(self.pool, self._decode, {"": rows}, inputs, self._wanted())
        self.pool.commit(rows, num_rows, num_steps)
        return StepResult(*results)

    def mixed(
        self,
        num_decoding: int,
        items: Array,
        chunk: Array,
        noise: NDArray[np.float32],
        *,
        num_rows: int,
        with_outputs: bool = False,
    ) -> StepResult:
        """One item of each of rows 0..num_decoding-1, and a chunk of a prompt for the row behind them, in one run.

        `items` `[row, 1]` or `[row, 1, features]`, `chunk` `[1, time]` or `[1, time, features]`, `noise`
        `[row + 1, 1, ...]`; `num_rows`: all rows in use. Gives what `decode` and then `step` would, the weights being
        read once.
        """
        assert self._mixed is not None
        rows = slice(0, num_decoding + 1)
        inputs = {ITEMS: items, CHUNK + ITEMS: chunk, **self.sampler.inputs(rows, noise)}
        parts = {"": slice(0, num_decoding), CHUNK: slice(num_decoding, num_decoding + 1)}
        results = self._runs.run(self.pool, self._mixed, parts, inputs, self._wanted(with_outputs=with_outputs))
        self.pool.commit(rows, num_rows, np.array([1] * num_decoding + [chunk.shape[1]]))
        return _one_step(results, with_outputs=with_outputs)

    def copy_row(self, source: int, target: int, *, with_memory: bool = True) -> None:
        """Give `target` the state and the parameters of `source`; its memory too, unless that is the same already."""
        self.pool.copy_row(source, target, with_memory=with_memory)
        self.sampler.copy_row(source, target)

    def swap_rows(self, one: int, other: int) -> None:
        """Exchange two rows."""
        state, parameters = self.pool.save_row(one), self.sampler.save_row(one)
        self.copy_row(other, one)
        self.pool.clear_row(other)
        self.pool.load_row(other, state)
        self.sampler.load_row(other, parameters)

    def _wanted(self, *, with_outputs: bool = False) -> list[str]:
        return [*self.sampler.results, OUTPUT] if with_outputs else [*self.sampler.results]


def _zeros(reads: InputSpec) -> Array:
    """One row of one item."""
    if isinstance(reads, TokenInput):
        return np.zeros((1, 1), np.int64)
    return np.zeros((1, 1, reads.features), np.float32)


def _one_step(results: list[Array], *, with_outputs: bool) -> StepResult:
    """The result of a run that made one item per row."""
    outputs = results.pop() if with_outputs else None
    result = StepResult(*(part[None] for part in results))
    return replace(result, outputs=outputs) if with_outputs else result
