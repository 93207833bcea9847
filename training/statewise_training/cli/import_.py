"""`statewise import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_NO_TOKENIZER = "none: prompts are token ids (save_pretrained of a fast tokenizer writes tokenizer.json)"


def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder with config.json and safetensors: GPT-2, Llama, Mistral, Qwen2; BART, mBART, Marian, Pegasus.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Checkpoint folder to write; must be new.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the folder's where absent.", show_default=False)
    ] = None,
    max_positions: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Longest sequence, prompt and output together; the model's own limit where absent.",
            show_default=False,
        ),
    ] = None,
    max_source_positions: Annotated[
        int | None,
        typer.Option(
            min=2, help="Longest source of an encoder-decoder; the model's own limit where absent.", show_default=False
        ),
    ] = None,
) -> None:
    """Import a checkpoint folder of Hugging Face transformers, ready for `statewise export`.

    Downloads nothing, and reads only safetensors: a pickle could run code.
    """
    from rich.console import Console

    from statewise_training.checkpoints.hugging_face.importer import import_checkpoint

    console = Console()
    imported = import_checkpoint(
        folder, output, name=name, max_positions=max_positions, max_source_positions=max_source_positions
    )
    config, special = imported.config, imported.special_tokens
    ends = ", ".join(map(str, (special.end, *special.other_ends)))
    size = f"{config.num_layers} layers, width {config.hidden_size}, vocabulary {config.vocabulary_size}"
    surround = special.surround
    around = f"; around a source: {list(surround.before)} and {list(surround.after)}" if surround else ""
    for line in (
        f"{imported.name}: {size}, {config.max_positions} positions",
        f"tokenizer: {'tokenizer.json' if imported.has_tokenizer else _NO_TOKENIZER}",
        f"start token: {special.start}, end token{'s' if special.other_ends else ''}: {ends}{around}",
        f"checkpoint: {output}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
