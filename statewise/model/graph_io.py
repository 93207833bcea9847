"""Inputs and outputs of a bundle's graphs by name: the contract between export and the server's runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from statewise.model.sampling_inputs import ADJUSTED_TOKENS, NOISE, NUM_TOP, OUTPUT_COUNTS, SEEN, sampling_inputs
from statewise.model.spec import (
    CategoricalHead,
    DType,
    HeadSpec,
    InputSpec,
    LabelsHead,
    MixtureHead,
    ModelSpec,
    StateSpec,
    TokenInput,
    ValueHead,
)

TensorType = DType | Literal["bool"]
Size = str | int

ITEMS = "items"
LENGTHS = "lengths"
"""int64 `[row]`: how many of a row's items are real, the others being padding on the right."""
STEPS = "steps"
"""int64 scalar: how many items a run of the decode graph makes for each row."""
SOURCE = "source"
SOURCE_LENGTHS = "source_lengths"
CHUNK = "chunk."
"""Prefix of the inputs and outputs of the row whose prompt a mixed run reads."""
OUTPUT = "output"
"""float32 `[row, output_size]`: the head's output, or the model's answer about a whole sequence."""
STEP_OUTPUT = "step.output"
"""The same as an input, of a graph that only chooses."""
SEQUENCE_LOG_PROBABILITIES = "log_probabilities"

NEXT_ITEMS = "next_items"
LOG_PROBABILITY = "log_probability"
"""float32: of the chosen item under the model's own distribution; zeros where NUM_TOP is -1."""
TOP_TOKENS = "top_tokens"
TOP_LOG_PROBABILITIES = "top_log_probabilities"


class GraphTensor(NamedTuple):
    """One input or output of a graph."""

    name: str
    dtype: TensorType
    shape: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class GraphIO:
    """Inputs and outputs of one graph: those of the model, and those of the choice of the next items."""

    model_inputs: tuple[GraphTensor, ...]
    model_outputs: tuple[GraphTensor, ...]
    choice_inputs: tuple[GraphTensor, ...] = ()
    results: tuple[GraphTensor, ...] = ()
    """Outputs of the choice."""

    @property
    def inputs(self) -> tuple[GraphTensor, ...]:
        """All inputs, in the graph's order."""
        return (*self.model_inputs, *self.choice_inputs)

    @property
    def outputs(self) -> tuple[GraphTensor, ...]:
        """All outputs, in the graph's order."""
        return (*self.results, *self.model_outputs)


def step_io(spec: ModelSpec) -> GraphIO:
    """Any number of new items per row."""
    return GraphIO(
        (_items(spec.input, "time"), _LENGTHS, *_old_state(spec)),
        (_output(spec, "row"), *_new_state(spec)),
        choice_inputs(spec.head, "row"),
        choice_results(spec.head, ["row"]),
    )


def model_io(spec: ModelSpec) -> GraphIO:
    """The step without the choice."""
    step = step_io(spec)
    return GraphIO(step.model_inputs, step.model_outputs)


def choose_io(spec: ModelSpec) -> GraphIO:
    """The choice alone."""
    step, output = step_io(spec), _output(spec, "row")
    return GraphIO((output._replace(name=STEP_OUTPUT),), (output,), step.choice_inputs, step.results)


def decode_io(spec: ModelSpec) -> GraphIO:
    """STEPS items per row, each fed back; results are `[step, row]`, the state is the last step's."""
    return GraphIO(
        (_items(spec.input, 1), GraphTensor(STEPS, "int64", ()), *_old_state(spec)),
        _new_state(spec),
        choice_inputs(spec.head, "row"),
        choice_results(spec.head, ["step", "row"]),
    )


def mixed_io(spec: ModelSpec) -> GraphIO:
    """One item of each of some rows, and a chunk of one more; results are of every row."""
    chunk = _items(spec.input, "time")
    chunk = GraphTensor(CHUNK + ITEMS, chunk.dtype, (1, *chunk.shape[1:]))
    return GraphIO(
        (_items(spec.input, 1), *_old_state(spec), chunk, *_of_chunk(_old_state(spec))),
        (_output(spec, "every"), *_new_state(spec), *_of_chunk(_new_state(spec))),
        choice_inputs(spec.head, "every"),
        choice_results(spec.head, ["every"]),
    )


def encode_io(spec: ModelSpec) -> GraphIO:
    """A source to all state but the caches."""
    assert spec.source is not None
    made = (state for state in spec.sized_state if state.kind != "cache")
    return GraphIO(
        (_items(spec.source, "time")._replace(name=SOURCE), _LENGTHS._replace(name=SOURCE_LENGTHS)),
        tuple(_new(state) for state in made),
    )


def predict_io(spec: ModelSpec) -> GraphIO:
    """Whole sequences to the model's answer, `[row, size]`, or `[row, time, labels]` where every item has a label."""
    head = spec.prediction
    assert head is not None
    is_per_item = isinstance(head, LabelsHead) and head.per == "item"
    shape = ("row", "time", head.output_size) if is_per_item else ("row", head.output_size)
    return GraphIO(whole_inputs(spec), (GraphTensor(OUTPUT, "float32", shape),))


def score_io(spec: ModelSpec) -> GraphIO:
    """Whole sequences to the log-probability of each item but the first, given those before it."""
    return GraphIO(whole_inputs(spec), (GraphTensor(SEQUENCE_LOG_PROBABILITIES, "float32", ("row", "previous")),))


def inspect_io(spec: ModelSpec, shapes: Mapping[str, Sequence[Size]]) -> GraphIO:
    """Whole sequences to tensors of these shapes, by the names that the plugin gives them."""
    return GraphIO(
        whole_inputs(spec), tuple(GraphTensor(name, "float32", tuple(shape)) for name, shape in shapes.items())
    )


def whole_inputs(spec: ModelSpec) -> tuple[GraphTensor, ...]:
    """The inputs of a graph that reads whole sequences."""
    return (_items(spec.input, "time"), _LENGTHS)


def choice_inputs(head: HeadSpec, row: str) -> tuple[GraphTensor, ...]:
    """The inputs of the choice, sampling rules first; `row` is the name of their first dimension."""
    if isinstance(head, ValueHead):
        return ()
    entries = (row, "entry")
    rules = (GraphTensor(r.name, r.dtype, entries if r.per_token else (row,)) for r in sampling_inputs(head))
    num_top = GraphTensor(NUM_TOP, "int64", ())
    if isinstance(head, MixtureHead):
        return (*rules, num_top, GraphTensor(NOISE, "float32", (row, "step", 1 + head.features)))
    return (
        *rules,
        GraphTensor(ADJUSTED_TOKENS, "int64", entries),
        GraphTensor(SEEN, "bool", entries),
        GraphTensor(OUTPUT_COUNTS, "float32", entries),
        num_top,
        GraphTensor(NOISE, "float32", (row, "step")),
    )


def choice_results(head: HeadSpec, leading: Sequence[Size]) -> tuple[GraphTensor, ...]:
    """The outputs of the choice, the items first; `leading` are the dimensions before their own."""
    at = tuple(leading)
    log_probability = GraphTensor(LOG_PROBABILITY, "float32", at)
    if isinstance(head, CategoricalHead):
        tops = (*at, "top")
        top = (GraphTensor(TOP_TOKENS, "int64", tops), GraphTensor(TOP_LOG_PROBABILITIES, "float32", tops))
        return (GraphTensor(NEXT_ITEMS, "int64", at), log_probability, *top)
    assert isinstance(head, ValueHead | MixtureHead)
    items = GraphTensor(NEXT_ITEMS, "float32", (*at, head.features))
    return (items, log_probability) if isinstance(head, MixtureHead) else (items,)


def state_input(name: str, prefix: str = "") -> str:
    """The input that holds a state tensor; `prefix` is CHUNK for the row that a mixed run prefills."""
    return f"{prefix}state.{name}"


def state_output(name: str, prefix: str = "") -> str:
    """The output that holds a state tensor's new value."""
    return f"{prefix}new_state.{name}"


_LENGTHS = GraphTensor(LENGTHS, "int64", ("row",))


def _items(reads: InputSpec, time: Size) -> GraphTensor:
    if isinstance(reads, TokenInput):
        return GraphTensor(ITEMS, "int64", ("row", time))
    return GraphTensor(ITEMS, "float32", ("row", time, reads.features))


def _output(spec: ModelSpec, row: str) -> GraphTensor:
    return GraphTensor(OUTPUT, "float32", (row, spec.head.output_size))


def _old_state(spec: ModelSpec) -> tuple[GraphTensor, ...]:
    return tuple(GraphTensor(state_input(state.name), state.dtype, state.shape) for state in spec.sized_state)


def _new_state(spec: ModelSpec) -> tuple[GraphTensor, ...]:
    """New values of the state that a step writes: memories are read only."""
    return tuple(_new(state) for state in spec.written_state)


def _new(state: StateSpec) -> GraphTensor:
    return GraphTensor(state_output(state.name), state.dtype, state.shape)


def _of_chunk(state: Iterable[GraphTensor]) -> list[GraphTensor]:
    return [GraphTensor(CHUNK + tensor.name, tensor.dtype, (1, *tensor.shape[1:])) for tensor in state]
