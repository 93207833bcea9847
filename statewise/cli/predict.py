"""`statewise predict`: labels, tags, embeddings or values of sequences, through gRPC like any other client."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from statewise.cli.generate import Address
from statewise.cli.sequences import AsJson, BatchSize, File, Texts, in_batches, print_json, read_sequences, shorten
from statewise.client import DEFAULT_ADDRESS, Client, Prediction, Prompt


def predict(
    model: Annotated[str, typer.Argument(help="Name of the model, as `statewise models` gives it.")],
    texts: Texts = None,
    file: File = None,
    address: Address = DEFAULT_ADDRESS,
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
) -> None:
    """Ask a model of a running server what it says of whole sequences: a label, tags, an embedding or a value.

    statewise predict sentiment "a fine film" "a dull one"

    statewise predict sentiment --file reviews.txt --json > answers.jsonl
    """
    sequences = read_sequences(texts, file)
    with Client(address) as client:
        pairs = in_batches(sequences, batch_size, lambda batch: client.predict(model, batch))
        if as_json:
            for sequence, prediction in pairs:
                print_json(sequence, _as_dict(prediction))
            return
        table = Table("sequence", "says", "probability")
        for sequence, prediction in pairs:
            table.add_row(escape(shorten(sequence)), *map(escape, _cells(prediction, sequence)))
    Console().print(table)


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    if prediction.label is not None:
        return {"label": prediction.label, "probabilities": prediction.probabilities}
    if prediction.tags is not None:
        return {"tags": [asdict(tag) for tag in prediction.tags]}
    if prediction.embedding is not None:
        return {"embedding": prediction.embedding.tolist()}
    return {"value": prediction.value.tolist() if prediction.value is not None else None}


def _cells(prediction: Prediction, sequence: Prompt) -> tuple[str, str]:
    if prediction.label is not None and prediction.probabilities is not None:
        return prediction.label, f"{prediction.probabilities[prediction.label]:.3f}"
    if prediction.tags is not None:
        return " ".join(_tagged(prediction, sequence)), f"{min(tag.probability for tag in prediction.tags):.3f} or more"
    vector = prediction.embedding if prediction.embedding is not None else prediction.value
    assert vector is not None
    more = f" … ({len(vector)} numbers)" if len(vector) > 6 else ""
    return " ".join(f"{value:.4g}" for value in vector[:6]) + more, ""


def _tagged(prediction: Prediction, sequence: Prompt) -> list[str]:
    """Each tag with the text that it stands for; items in a row that bear the same one are put together."""
    parts: list[tuple[str, int, int]] = []
    for position, tag in enumerate(prediction.tags or ()):
        start, end = (position, position + 1) if tag.start is None or tag.end is None else (tag.start, tag.end)
        if parts and parts[-1][0] == tag.label:
            start = parts.pop()[1]
        parts.append((tag.label, start, end))
    is_text = isinstance(sequence, str)
    return [f"{sequence[start:end] if is_text else f'{start}-{end - 1}'}/{label}" for label, start, end in parts]
