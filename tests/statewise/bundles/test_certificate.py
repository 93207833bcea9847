from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from statewise.bundles.certificate import Certificate, check_certificate, read_certificate
from statewise.bundles.figures import DensityDivergence, Limits
from statewise.bundles.reader import Bundle, open_bundle
from statewise.bundles.writer import BundleDraft
from statewise.errors import BundleError
from tests.small_bundles import CERTIFICATE, CONTENT, DATA, STEP, VARIANT, certify, write_bundle


def bundle_with(repository: Path, text: Callable[[BundleDraft], str]) -> Bundle:
    """Write a bundle with this certificate."""

    def put(draft: BundleDraft) -> None:
        (draft.folder / CERTIFICATE).write_text(text(draft), encoding="utf-8")

    return open_bundle(write_bundle(repository, before_commit=put))


def changed(draft: BundleDraft, **changes: Any) -> str:
    files = draft.preview(CONTENT).variant_files(VARIANT)
    return certify(draft.name, draft.version, files).model_copy(update=changes).to_json()


def test_a_certificate_that_passed_is_accepted(tmp_path: Path) -> None:
    """The certificate that export wrote is read back whole."""
    bundle = open_bundle(write_bundle(tmp_path))

    certificate = check_certificate(bundle, VARIANT)

    assert certificate.to_json() == bundle.path(CERTIFICATE).read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"passed": False}, "parity was missed"),
        ({"model": "other"}, "speaks for other/1 variant cpu-float32, not for sum/1"),
        ({"version": 2}, "speaks for sum/2"),
        ({"variant": "cpu-int8"}, "variant cpu-int8"),
        ({"files": {}}, f"says nothing of {STEP}, {DATA}"),
        ({"files": {STEP: "0" * 64, DATA: "0" * 64}}, f"another content of {STEP}, {DATA}"),
    ],
)
def test_a_certificate_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """A certificate must have passed, and speak for this model, version, variant and these very files."""
    bundle = bundle_with(tmp_path, lambda draft: changed(draft, **changes))

    with pytest.raises(BundleError, match=f"^{CERTIFICATE}: .*{reason}"):
        check_certificate(bundle, VARIANT)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 1, "shiny": 2}', "\x00"])
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str) -> None:
    """A file that is no certificate is refused by name."""
    bundle = bundle_with(tmp_path, lambda _: text)

    with pytest.raises(BundleError, match=f"^{CERTIFICATE}: "):
        check_certificate(bundle, VARIANT)


def test_a_failed_certificate_can_be_read(tmp_path: Path) -> None:
    """A report shows a certificate that did not pass, even where its errors are not numbers."""
    bundle = bundle_with(
        tmp_path,
        lambda draft: changed(draft, passed=False).replace('"max_relative_error": 0.0', '"max_relative_error": "NaN"'),
    )

    certificate = read_certificate(bundle, VARIANT)

    assert certificate.outputs.max_relative_error != certificate.outputs.max_relative_error
    assert Certificate.model_validate_json(certificate.to_json()).passed is False


def test_no_certificate_passes_with_a_failed_case() -> None:
    """`passed` says that every case did."""
    record = certify("sum", 1, {}).model_dump()
    record["cases"][0]["passed"] = False

    with pytest.raises(ValidationError, match="a case of it did not"):
        Certificate.model_validate(record)


def divergence(kl: float) -> dict[str, Any]:
    figures = {"perplexity": 9.0, "perplexity_float32": 9.0, "equal_greedy": 1.0, "common_prefix": 64.0}
    return {"held_out": "data", "num_tokens": 9, "num_generated": 64, "kl_divergence": kl} | figures


@pytest.mark.parametrize("kl", [0.02, float("nan")])
def test_no_certificate_passes_beyond_its_limits(kl: float) -> None:
    """`passed` says that the divergence from float32 is within the limits; NaN is within none."""
    record = certify("sum", 1, {}).model_dump() | {"reference": "itself", "divergence": divergence(kl)}
    record["limits"] = {"kl_divergence": 0.01, "perplexity_ratio": 1.1, "difference": 0.0}

    with pytest.raises(ValidationError, match="further from float32"):
        Certificate.model_validate(record)


def test_no_certificate_is_held_against_itself_alone() -> None:
    """A variant that was not compared with PyTorch's outputs says how far from them it lies, and what is allowed."""
    with pytest.raises(ValidationError, match="neither how far"):
        Certificate.model_validate(certify("sum", 1, {}).model_dump() | {"reference": "itself"})


@pytest.mark.parametrize(
    ("kl", "loss", "is_within"),
    [(0.001, 1.0, True), (-0.001, 0.5, True), (0.02, 1.0, False), (0.001, 1.1, False), (float("nan"), 1.0, False)],
)
def test_densities_are_bounded_in_divergence_and_likelihood(kl: float, loss: float, is_within: bool) -> None:
    """A variant's mixtures may lose the logarithm of the limit on perplexity, and be better; NaN is within nothing."""
    limits = Limits(kl_divergence=0.01, perplexity_ratio=1.05, difference=0.0, equal_labels=1.0, answers=0.0)
    found = DensityDivergence(
        held_out="data",
        num_items=9,
        negative_log_likelihood_float32=1.0,
        negative_log_likelihood=loss,
        kl_divergence=kl,
    )

    assert found.within(limits) == is_within
