"""The commands of Statewise, in the order in which they are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: enough for `--help`, so that no command is imported for it."""

    name: str
    summary: str
    """The first paragraph of its help."""
    extra: str | None = None
    """The extra that it needs; None where the base is enough."""
    function: str | None = None
    """`module:name` of a command of the base; None for one that an entry point announces."""


COMMANDS = (
    Command("train", "Train a sequence model and leave a checkpoint folder, ready for `statewise export`.", "train"),
    Command(
        "import", "Import a checkpoint folder of Hugging Face transformers, ready for `statewise export`.", "train"
    ),
    Command(
        "export", "Export a checkpoint to ONNX, certify it against PyTorch and add it to a model repository.", "train"
    ),
    Command("verify", "Make a bundle's certificate again, on this machine, and compare.", "train"),
    Command("serve", "Serve the models of a repository over gRPC.", "server"),
    Command(
        "generate",
        "Continue a prompt with a model of a running server.",
        function="statewise.cli.generate:generate",
    ),
    Command(
        "predict",
        "Ask a model of a running server what it says of whole sequences: a label, tags, an embedding or a value.",
        function="statewise.cli.predict:predict",
    ),
    Command(
        "score",
        "Ask a model of a running server how probable it finds whole sequences.",
        function="statewise.cli.score:score",
    ),
    Command(
        "forecast",
        "Forecast a series with a mixture model of a running server.",
        function="statewise.cli.forecast:forecast",
    ),
    Command(
        "models",
        "List the models of a running server, also those that it refused, with the reason.",
        function="statewise.cli.models:models",
    ),
    Command("plot", "Draw pictures that explain models.", function="statewise.cli.plot:plot"),
    Command(
        "demo",
        "Train, export, certify and serve on real data, and show what came of it: about two minutes.",
        "demos",
        "statewise.cli.demo:demo",
    ),
)

PLOTS = (
    Command(
        "attention",
        "Show what each head of a Transformer attends to: a heat map for each layer and head.",
        "plot",
        "statewise.cli.plot.attention:attention",
    ),
    Command(
        "gates",
        "Show how the gates of an LSTM or a GRU stand while it reads: open (1) or shut (0), for every unit over time.",
        "plot",
        "statewise.cli.plot.gates:gates",
    ),
    Command("gradients", "Show why gates exist: gradients against distance in time, for RNN, LSTM and GRU.", "train"),
)
