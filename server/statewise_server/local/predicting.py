"""Whole sequences without a wire: outputs of a model's graphs into predictions, scores and inspections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.client.items import Items
from statewise.client.values import Inspection, Prediction, PredictionInfo, Score, Tag
from statewise.errors import InvalidRequestError
from statewise.model.graph_io import OUTPUT, SEQUENCE_LOG_PROBABILITIES
from statewise.model.spec import HeadSpec, LabelsHead
from statewise.rules.sampling import log_softmax
from statewise_server.local.reading import Reader, ReadSequence

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.batcher import Answer, Batcher
    from statewise_server.engine.whole_sequences.predictor import Predictor

MAX_INSPECTED_NUMBERS = 1 << 22
"""Numbers in one inspection: 16 MiB of them. Attention weights grow with the square of the length."""


def info_of(model: Engine | Predictor) -> PredictionInfo:
    """Name, version and variant of a model."""
    return PredictionInfo(model.manifest.name, model.manifest.version, model.variant_name)


def read_inputs(inputs: Sequence[Items], predictor: Predictor) -> list[ReadSequence]:
    """Read the sequences of one request, as many as one may have. Raises InvalidRequestError, naming the field."""
    most = predictor.settings.max_inputs
    if not 1 <= len(inputs) <= most:
        raise InvalidRequestError(f"a request has 1 to {most} sequences, got {len(inputs)}", field="inputs")
    reader = Reader.of_inputs(predictor)
    return [reader.read(given, f"inputs[{index}]") for index, given in enumerate(inputs)]


def prediction_of(answer: Answer, sequence: ReadSequence, predictor: Predictor) -> Prediction:
    """Turn the output of a graph into the prediction of one sequence."""
    head, output, info = predictor.manifest.model.prediction, answer[OUTPUT], info_of(predictor)
    assert head is not None
    if isinstance(head, LabelsHead):
        if head.per == "item":
            return Prediction(info, tags=_tags(output, sequence, head.names))
        probabilities = dict(zip(head.names, _probabilities(output).tolist(), strict=True))
        return Prediction(info, label=head.names[int(output.argmax())], probabilities=probabilities)
    # A copy: the output is a view that would keep its whole batch.
    values = np.array(output, np.float32)
    return Prediction(info, embedding=values) if head.kind == "embedding" else Prediction(info, value=values)


def check_embeds(predictor: Predictor) -> None:
    """Raise InvalidRequestError for a model that makes no embeddings."""
    head: HeadSpec | None = predictor.manifest.model.prediction
    if head is not None and head.kind != "embedding":
        raise InvalidRequestError(f"{predictor.manifest.name!r} makes no embeddings; use predict", field="model")


def score_of(answer: Answer, sequence: ReadSequence, predictor: Predictor) -> Score:
    """Turn the output of a graph into the score of one sequence."""
    values = np.array(answer[SEQUENCE_LOG_PROBABILITIES], np.float32)
    tokens = sequence.items[sequence.num_before :].tolist() if sequence.items.ndim == 1 else ()
    return Score(info_of(predictor), values, float(values.sum(dtype=np.float64)), tuple(tokens))


def check_inspection_size(length: int, batcher: Batcher, field: str) -> None:
    """Raise InvalidRequestError where a model would show too many numbers of so many items."""
    count = batcher.num_numbers(length)
    if count <= MAX_INSPECTED_NUMBERS:
        return
    longest = next(n for n in range(length, -1, -1) if batcher.num_numbers(n) <= MAX_INSPECTED_NUMBERS)
    raise InvalidRequestError(
        f"what the model shows of {length} items would be {count:,} numbers, at most {MAX_INSPECTED_NUMBERS:,} are "
        f"given; give at most {longest} items, a start token included",
        field=field,
    )


def inspection_of(shown: Mapping[str, NDArray[np.float32]], sequence: ReadSequence, predictor: Predictor) -> Inspection:
    """Turn the outputs of a graph into the inspection of one sequence."""
    pieces = [] if predictor.tokenizer is None else _pieces(sequence.items.tolist(), predictor.tokenizer)
    tensors = {name: np.array(values, np.float32) for name, values in shown.items()}
    return Inspection(tuple(pieces), tensors, info_of(predictor))


def _pieces(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Each token as text; where it is none by itself (a part of a character, a special token), by its own name."""
    texts = tokenizer.decode_batch([[token] for token in ids])
    names = [tokenizer.id_to_token(token) or str(token) for token in ids]
    return [text if text and "\ufffd" not in text else name for text, name in zip(texts, names, strict=True)]


def _tags(logits: NDArray[np.float32], sequence: ReadSequence, names: tuple[str, ...]) -> tuple[Tag, ...]:
    """Return one tag for each item that was sent, none for tokens that were added; `logits` `[time, labels]`."""
    logits = logits[sequence.num_before : len(logits) - sequence.num_after]
    chosen = logits.argmax(axis=1)
    probabilities = np.take_along_axis(_probabilities(logits), chosen[:, None], axis=1)[:, 0].tolist()
    labels = [names[label] for label in chosen]
    if not sequence.spans:
        return tuple(map(Tag, labels, probabilities))
    starts, ends = zip(*sequence.spans, strict=True)
    return tuple(map(Tag, labels, probabilities, starts, ends))


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Computed in double precision, and given in single, which is what every protocol sends."""
    return np.exp(log_softmax(logits.astype(np.float64))).astype(np.float32)
