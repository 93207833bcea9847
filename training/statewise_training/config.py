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
"""Paths or glob patterns, relative to the working directory; a single one needs no list."""


class _Data(Section):
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the data held out from training, for the validation loss."""
    split_seed: NonNegativeInt = 0
    """Seed of the held-out split; separate from `trainer.seed`, so that runs with other seeds stay comparable."""


class CorpusData(_Data):
    """Corpus without a download: the Python documentation in the standard library's `pydoc_data`."""

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
    """Name of the member that holds the text in each line's object."""


class SeriesData(_Data):
    """Real vectors over time: .csv (one row per time step) or .npy `[time, features]`, one series per file."""

    kind: Literal["series"]
    files: Files
    columns: tuple[str, ...] | None = None
    """Columns of the .csv files, by the names in their first row; all where absent."""
    standardize: bool = False
    """Subtract the mean and divide by the deviation of the training part; checkpoint.json records both."""


class LabelledData(_Data):
    """Sequences with one target each: .jsonl, one per line, or .npz, one per index."""

    kind: Literal["labelled"]
    files: Files
    target: Literal["label", "tags", "value"] = "label"
    """Target: one label per sequence, one per item (tags), or one or more numbers per sequence."""
    input_field: str | None = None
    """Name of the member that holds the sequence: `text` in .jsonl, `items` in .npz."""
    target_field: str | None = None
    """Name of the target's member: `label`, `tags` or `value` in .jsonl, `labels`, `tags` or `values` in .npz."""
    outside: str = "O"
    """Label of a text's items without a tag."""
    truncate_to: PositiveInt | None = None
    """Cut sequences with one target to this many items; without it, sequences too long for the model are refused."""
    standardize: bool = False
    """Vectors: subtract the mean and divide by the deviation of the training part; checkpoint.json records both."""


class PairsData(_Data):
    """Pairs of source and target: JSON Lines with both, or two parallel text files."""

    kind: Literal["pairs"]
    files: Files | None = None
    """JSON Lines, one pair per line."""
    source_field: str = "source"
    """Name of the member that holds the source, a text or a list of vectors."""
    target_field: str = "target"
    """Name of the member that holds the target, a text."""
    source_files: Files | None = None
    """Text files with one source per line, instead of `files`."""
    target_files: Files | None = None
    """Text files with one target per line. Both lists are sorted by name; line n of each is one pair."""

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
    """One token per byte of UTF-8; every text can be encoded."""

    kind: Literal["bytes"]


class BPETokenizer(Section):
    """Byte pairs merged by frequency in the training text (Sennrich et al. 2016), over bytes."""

    kind: Literal["bpe"]
    vocabulary_size: int = Field(default=2048, ge=258)


class FileTokenizer(Section):
    """An existing tokenizer.json, as for imported weights."""

    kind: Literal["file"]
    file: Path
    start: str | None = None
    """Token before every document, as the file spells it."""
    end: str | None = None
    """Token at the end of a document."""


TokenizerConfig = CharacterTokenizer | ByteTokenizer | BPETokenizer | FileTokenizer


class InitializeFrom(Section):
    """Initial weights: the state dict of a PyTorch module, as safetensors."""

    file: Path
    rename: dict[str, str] = {}
    """New names of the tensors in the file: {encoder: embedding, lstm: rnn, decoder: output}."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019); weight decay leaves out vectors, such as biases."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0.0, le=100.0)
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)


class ScheduleConfig(Section):
    """Learning rate over the run, after a linear warm-up."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    final_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Final value of cosine and linear, as a fraction of the learning rate."""


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
    """Largest norm of the gradient; null disables clipping."""
    early_stopping_patience: PositiveInt | None = None
    """Number of validations without a better loss after which the run stops."""
    validation_every: PositiveInt | None = None
    """Steps between validations, each with a checkpoint; one epoch where absent."""
    log_every: PositiveInt = 10
    """Steps between rows of the log."""
    allow_diverged: bool = False
    """Succeed even if the validation loss is worse than that of a prediction that ignores the input."""
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    """Lightning's strategy for several devices: ddp, fsdp, deepspeed …"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    seed: NonNegativeInt = 0


class TrainConfig(Section):
    """One training run."""

    name: ModelName
    """Name of the model for export and serving."""
    plugin: str
    """Model family: markov, gru, transformer, gru_encoder … (docs/train.md), or one from an installed package."""
    model: dict[str, Any] = {}
    """Settings of the family; vocabulary_size and features come from the data."""
    data: Annotated[DataConfig, Field(discriminator="kind")] = CorpusData()
    tokenizer: Annotated[TokenizerConfig, Field(discriminator="kind")] | None = None
    """Tokenizer of texts; characters where absent."""
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
        """Return the tokenizer section, or its default."""
        return self.tokenizer or CharacterTokenizer()

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.output or Path("runs") / self.name
