"""The certificate, made on the device that it speaks for."""

from __future__ import annotations

import pytest

from statewise_export.certify.certify import certify
from statewise_export.certify.inputs import Scale
from tests.cuda.drafts import MODELS, VARIANTS, draft, reference

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_device_computes_what_pytorch_computes(name: str, variant: str) -> None:
    """Outputs and tokens agree with PyTorch's, in every batch, chunk and shape of the certificate."""
    bundle = draft(name, variant)

    certificate = certify(bundle, variant, reference(name, bundle), Scale())

    print(f"\n{name} {variant}: {certificate.outputs}, {certificate.greedy_tokens}, {certificate.sampled_tokens}")
    assert certificate.passed, certificate.to_json()
