"""The certificate, made on the device that it speaks for."""

from __future__ import annotations

import pytest

from statewise_export.certify.certify import CHECKS, run_checks
from statewise_export.certify.quantized.casts import FLOAT16_WEIGHTS
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer
from tests.cuda.drafts import MODELS, VARIANTS, checkpoint, draft

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_device_computes_what_pytorch_computes(name: str, variant: str) -> None:
    """Outputs and tokens agree with PyTorch's, in every batch, chunk and shape of the certificate."""
    bundle = draft(name, variant)

    # Tracing, which the check of casts needs, is not for a machine with little else than a GPU.
    checks = [check for check in CHECKS if check is not FLOAT16_WEIGHTS]
    outcomes = run_checks(Trial(bundle, variant, Tracer(checkpoint(name, bundle))), checks)

    print("", *(f"{name} {variant}: {outcome.name}: {outcome.figure}" for outcome in outcomes), sep="\n")
    assert all(outcome.passed for outcome in outcomes)
