"""A check: one comparison over a trial, and the outcomes that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from statewise.bundles.certificate import Case, CheckResult
from statewise_export.certify.trial import Trial


@dataclass(frozen=True)
class Outcome:
    """One line of a certificate."""

    name: str
    passed: bool
    figure: str
    """The measured numbers beside their limits, or the first difference."""
    cases: Sequence[Case] = ()
    """The shapes of input that were run."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the certificate that this outcome sets; tuples of several outcomes are joined."""

    @property
    def result(self) -> CheckResult:
        """The record for the certificate."""
        return CheckResult(name=self.name, passed=self.passed, figure=self.figure)


@dataclass(frozen=True)
class Check:
    """One comparison; it may come to several outcomes where one run of the model serves several."""

    name: str
    """Shown by the progress display while it runs."""
    applies_to: Callable[[Trial], bool]
    run: Callable[[Trial], list[Outcome]]
