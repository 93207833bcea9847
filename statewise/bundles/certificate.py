"""The parity certificate: proof, by running the bundle, that a variant computes what PyTorch computes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from statewise.bundles.figures import (
    AnswerDivergence,
    Divergence,
    Figures,
    LabelDivergence,
    Limits,
    OutputAgreement,
    TokenAgreement,
    Tolerances,
)
from statewise.bundles.manifest import FileName, ModelName, Sha256
from statewise.bundles.manifest_file import describe
from statewise.bundles.reader import Bundle
from statewise.errors import BundleError


class CheckResult(Figures):
    """One check: what was held against what, and what came of it; one line of a report."""

    name: str
    passed: bool
    figure: str
    """The measured numbers beside their limits, or the first difference, for people."""


class Case(Figures):
    """One shape of input that was run."""

    graph: Literal["step", "predict", "score", "inspect"] = "step"
    """Name of the graph; `step` stands for all graphs that carry state."""
    prompt_length: int = Field(ge=0)
    """Longest prompt or sequence of the batch, where rows are ragged."""
    source_length: int | None = None
    """Longest source of the batch; None where the model has none."""
    batch_size: int = Field(ge=1)
    chunk: int | None = None
    """Items per prefill run; None where each prompt went in whole."""
    mixed: bool = False
    """Whether one prompt was read in the runs in which the other rows decoded."""
    max_absolute_error: float
    passed: bool


class SequenceAgreement(Figures):
    """Agreement of a graph that reads whole sequences with the reference."""

    graph: Literal["predict", "score", "inspect"]
    tolerances: Tolerances
    outputs: OutputAgreement
    labels: TokenAgreement | None = None
    """Most probable labels; None where the model gives none."""
    batch_invariant: bool
    """A sequence alone gives what it gives in a full batch: bit for bit, or as `tolerances.batch` says."""
    divergence: LabelDivergence | AnswerDivergence | None = None
    """Divergence of `predict` from PyTorch in float32; None where the outputs themselves were compared."""

    @property
    def passed(self) -> bool:
        """Whether labels and batches are as they should be; the outputs are `Certificate.cases`."""
        return self.batch_invariant and (self.labels is None or self.labels.all_equal)


class Certificate(Figures):
    """`certificate.<variant>.json`."""

    schema_version: Literal[2] = 2
    model: ModelName
    version: int = Field(ge=1)
    variant: str
    passed: bool
    reference: Literal["pytorch", "itself"] = "pytorch"
    """Reference of outputs and tokens. Rounded to few bits, nothing equals PyTorch within a tolerance: such a variant
    is compared with itself, fed one item at a time and sampled by the rules in NumPy; the tolerances bound how far its
    batches, chunks and graphs may lie apart, and `divergence` is its distance from PyTorch."""
    tolerances: Tolerances
    """Tolerances of the graphs that carry state, as `outputs`; of `predict`, if the model has none."""
    outputs: OutputAgreement
    greedy_tokens: TokenAgreement | None = None
    """None where the model gives real vectors."""
    sampled_tokens: TokenAgreement | None = None
    sampled_vectors: TokenAgreement | None = None
    """Vectors drawn from mixtures, equal within the tolerance that outputs imply; near ties are between components."""
    batch_invariant: bool
    """A row alone gives what it gives in a full batch, and beside a prompt that is read in the same run: bit for bit,
    or as `tolerances.batch` says."""
    chunk_invariant: bool
    """A prompt in chunks gives what it gives whole, within the tolerances; true where nothing is read in chunks."""
    sequences: tuple[SequenceAgreement, ...] = ()
    """The graphs that read whole sequences."""
    divergence: Divergence | None = None
    """From PyTorch in float32; None where the outputs themselves were held against it."""
    limits: Limits | None = None
    checks: tuple[CheckResult, ...] = Field(min_length=1)
    """Results of all checks, in order; the fields above hold some of their figures for programs."""
    cases: tuple[Case, ...] = Field(min_length=1)
    seeds: tuple[int, ...]
    libraries: dict[str, str]
    """Versions that the comparison was made with."""
    files: dict[FileName, Sha256]
    """The graphs and weights that it speaks for: `Bundle.variant_files`."""
    created: datetime
    """UTC."""

    @model_validator(mode="after")
    def _passed_means_all(self) -> Certificate:
        missed = [check.name for check in self.checks if not check.passed]
        if self.passed and missed:
            raise ValueError(f"says passed, but missed {', '.join(missed)}")
        if self.passed and not all(case.passed for case in self.cases):
            raise ValueError("says passed, but a case of it did not")
        if self.passed and not all(agreement.passed for agreement in self.sequences):
            raise ValueError("says passed, but a graph that reads whole sequences did not")
        if self.reference == "itself" and (self.divergence is None or self.limits is None):
            raise ValueError("was not held against PyTorch, and says neither how far from it nor what is allowed")
        if self.passed and not self.is_close:
            raise ValueError("says passed, but lies further from float32 than its limits")
        return self

    @property
    def is_close(self) -> bool:
        """Whether its divergence from float32, if it speaks of one, is within its limits."""
        found = [self.divergence, *(agreement.divergence for agreement in self.sequences)]
        limits = self.limits
        return limits is None or all(divergence is None or divergence.within(limits) for divergence in found)

    def to_json(self) -> str:
        """Return the text of the file."""
        return self.model_dump_json(indent=2) + "\n"


def read_certificate(bundle: Bundle, variant_name: str) -> Certificate:
    """Return a variant's certificate, passed or not. Raises BundleError where it is absent or unreadable."""
    name = bundle.variant(variant_name).certificate
    try:
        return Certificate.model_validate_json(bundle.path(name).read_bytes())
    except ValidationError as error:
        raise BundleError(f"{name}: {describe(error)}") from error
    except OSError as error:
        raise BundleError(f"{name}: cannot be read: {error.strerror}") from error


def check_certificate(bundle: Bundle, variant_name: str) -> Certificate:
    """Return a variant's certificate. Raises BundleError unless it passed and speaks for just its files."""
    certificate = read_certificate(bundle, variant_name)
    name = bundle.variant(variant_name).certificate
    subject = (bundle.manifest.name, bundle.manifest.version, variant_name)
    certified = (certificate.model, certificate.version, certificate.variant)
    if certified != subject:
        raise BundleError(f"{name}: speaks for {_spell(certified)}, not for {_spell(subject)}")
    if not certificate.passed:
        raise BundleError(f"{name}: parity was missed, so variant {variant_name} is not certified")
    _check_files(name, certificate.files, bundle.variant_files(variant_name))
    return certificate


def _check_files(name: str, certified: dict[str, str], files: dict[str, str]) -> None:
    silent = sorted(files.keys() - certified.keys())
    if silent:
        raise BundleError(f"{name}: says nothing of {', '.join(silent)}")
    others = sorted(file for file, digest in certified.items() if files.get(file) != digest)
    if others:
        raise BundleError(f"{name}: speaks for another content of {', '.join(others)}")


def _spell(subject: tuple[str, int, str]) -> str:
    model, version, variant = subject
    return f"{model}/{version} variant {variant}"
