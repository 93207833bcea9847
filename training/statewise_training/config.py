"""The configuration of a training run: one YAML file, with `--set a.b=value` on top."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from statewise.bundles.manifest import ModelName


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Files = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
"""Paths or glob patterns, relative to the working directory; one alone may stand without a list."""


class _Data(Section):
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the data that is never trained on; it measures the validation loss."""
    split_seed: NonNegativeInt = 0
    """Chooses the part that is held out; apart from `trainer.seed`, so that runs with other seeds stay comparable."""


class CorpusData(_Data):
    """A corpus that needs no download: the Python documentation in the standard library's `pydoc_data`."""

    kind: Literal["corpus"] = "corpus"
    corpus: Literal["python-docs"] = "python-docs"


class TextData(_Data):
    """UTF-8 text files, one document each."""

    kind: Literal["text"]
    files: Files


class JSONLData(_Data):
    """JSON Lines, one document per line."""

    kind: Literal["jsonl"]
    files: Files
    text_field: str = "text"
    """The member of each line's object that holds the text."""


class SeriesData(_Data):
    """Real vectors over time: .csv (a row is a moment) or .npy `[time, features]`, one series per file."""

    kind: Literal["series"]
    files: Files
    columns: tuple[str, ...] | None = None
    """Columns of the .csv files to use, by the names in their first row; all where absent."""
    standardize: bool = False
    """Subtract the mean and divide by the deviation of the training part; checkpoint.json records both."""


class LabelledData(_Data):
    """Sequences with a target each: .jsonl, one per line, or .npz, one per index."""

    kind: Literal["labelled"]
    files: Files
    target: Literal["label", "tags", "value"] = "label"
    """A label per sequence, one per item, or the numbers that belong to a sequence."""
    input_field: str | None = None
    """The member that holds the sequence: `text` in .jsonl, `items` in .npz."""
    target_field: str | None = None
    """The member that holds the target: `label`, `tags` or `value` in .jsonl, `labels`, `tags` or `values` in .npz."""
    outside: str = "O"
    """The label of the items of a text that no tag covers."""
    truncate_to: PositiveInt | None = None
    """Cut sequences with one target to this many items; without it, those longer than the model takes are refused."""
    standardize: bool = False
    """Vectors: subtract the mean and divide by the deviation of the training part; checkpoint.json records both."""


class PairsData(_Data):
    """Pairs of source and target: JSON Lines with both, or parallel text files with one of them per line."""

    kind: Literal["pairs"]
    files: Files | None = None
    """JSON Lines, one pair per line."""
    source_field: str = "source"
    """The member that holds the source: a text, or a list of vectors."""
    target_field: str = "target"
    """The member that holds the target, a text."""
    source_files: Files | None = None
    """In place of `files`: text files with a source per line."""
    target_files: Files | None = None
    """Text files with a target per line. Both lists are sorted by name; line n of each is one pair."""

    @model_validator(mode="after")
    def _one_way_to_give_pairs(self) -> PairsData:
        if (self.source_files is None) != (self.target_files is None):
            raise ValueError("source_files and target_files go together")
        if (self.files is None) == (self.source_files is None):
            raise ValueError("give files (JSON Lines), or source_files and target_files (parallel lines)")
        return self


DataConfig = CorpusData | TextData | JSONLData | SeriesData | PairsData | LabelledData


class CharacterTokenizer(Section):
    """One token per character of the training text, and one for all others."""

    kind: Literal["characters"] = "characters"


class ByteTokenizer(Section):
    """One token per byte of UTF-8; no text is ever unknown."""

    kind: Literal["bytes"]


class BPETokenizer(Section):
    """Byte pairs merged by frequency in the training text (Sennrich et al. 2016), over bytes."""

    kind: Literal["bpe"]
    vocabulary_size: int = Field(default=2048, ge=258)


class FileTokenizer(Section):
    """A tokenizer.json that exists already, as for weights from elsewhere."""

    kind: Literal["file"]
    file: Path
    start: str | None = None
    """The token put before every document, as the file spells it."""
    end: str | None = None
    """The token that ends a document."""


TokenizerConfig = CharacterTokenizer | ByteTokenizer | BPETokenizer | FileTokenizer


class InitializeFrom(Section):
    """Weights to start from: the state dict of a PyTorch module, as safetensors."""

    file: Path
    rename: dict[str, str] = {}
    """New names of the tensors in the file: {encoder: embedding, lstm: rnn, decoder: output}."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019); weight decay spares vectors, such as biases."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0.0, le=100.0)
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)


class ScheduleConfig(Section):
    """The learning rate over the run, after a linear warm-up."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Where cosine and linear end, as a fraction of the learning rate."""


class TrainerConfig(Section):
    """Length of the run, batch size, device and seed."""

    max_epochs: PositiveInt | None = None
    """Passes over the training data; 10 where neither this nor `max_steps` is given."""
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    """Chunks per step and device."""
    sequence_length: PositiveInt = 128
    """Items per chunk; gradients reach back no further."""
    gradient_clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null leaves it alone."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many validations without a better loss."""
    validation_every: PositiveInt | None = None
    """Steps between validations, each with a checkpoint; one epoch where absent."""
    log_every: PositiveInt = 10
    """Steps between rows of the log."""
    allow_diverged: bool = False
    """Succeed although the validation loss is worse than that of a prediction that ignores the input."""
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    """Lightning's name for the way to use several devices: ddp, fsdp, deepspeed …"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    seed: NonNegativeInt = 0


class TrainConfig(Section):
    """One training run."""

    name: ModelName
    """The model's name, under which it will be exported and served."""
    plugin: str
    """The model family: markov, gru, transformer, gru_encoder … (docs/train.md), or one from an installed package."""
    model: dict[str, Any] = {}
    """The family's own settings; vocabulary_size and features come from the data."""
    data: Annotated[DataConfig, Field(discriminator="kind")] = CorpusData()
    tokenizer: Annotated[TokenizerConfig, Field(discriminator="kind")] | None = None
    """How text becomes tokens; characters where absent."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()
    initialize_from: InitializeFrom | None = None
    output: Path | None = None
    """Folder of the run; runs/NAME where absent."""

    @model_validator(mode="after")
    def _only_text_has_a_tokenizer(self) -> TrainConfig:
        if isinstance(self.data, SeriesData) and self.tokenizer is not None:
            raise ValueError("tokenizer: data of kind series has no text; remove this section")
        return self

    @property
    def text_tokenizer(self) -> TokenizerConfig:
        """The tokenizer section, or its default."""
        return self.tokenizer or CharacterTokenizer()

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.output or Path("runs") / self.name
