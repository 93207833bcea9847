"""`statewise score`: how probable a model finds sequences, through gRPC like any other client."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from statewise.cli.generate import Address
from statewise.cli.sequences import AsJson, BatchSize, File, Texts, in_batches, print_json, read_sequences, shorten
from statewise.client import DEFAULT_ADDRESS, Client


def score(
    model: Annotated[str, typer.Argument(help="Name of the model, as `statewise models` gives it.")],
    texts: Texts = None,
    file: File = None,
    address: Address = DEFAULT_ADDRESS,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Ask a model of a running server how probable it finds whole sequences.

    statewise score shakespeare "To be, or not to be" "To bee, or not to bee"

    statewise score shakespeare --file lines.txt --json > scores.jsonl
    """
    sequences = read_sequences(texts, file)
    with Client(address) as client:
        pairs = in_batches(sequences, batch_size, lambda batch: client.score(model, batch))
        if as_json:
            for sequence, result in pairs:
                values = result.log_probabilities.tolist()
                print_json(sequence, {"total": result.total, "log_probabilities": values, "tokens": result.tokens})
            return
        table = Table("sequence", "items", "log-probability", "per item", "perplexity")
        for sequence, result in pairs:
            count = len(result.log_probabilities)
            mean = f"{result.total / count:.4f}" if count else ""
            table.add_row(
                escape(shorten(sequence)), str(count), f"{result.total:.4f}", mean, f"{result.perplexity:.2f}"
            )
    Console().print(table)
