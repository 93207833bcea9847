"""Tests that need an NVIDIA GPU (make test-cuda): skipped with the reason where there is none.

REQUIRE_CUDA=1 in the environment makes them fail instead, for machines that are there to run them.
"""

from __future__ import annotations

import os

import pytest

from statewise_server.runtime.ort.providers import why_not


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    reason = why_not("cuda")
    if reason is None:
        return
    if os.environ.get("REQUIRE_CUDA", "") not in ("", "0"):
        pytest.fail(f"CUDA is required, but {reason}")
    pytest.skip(f"no CUDA: {reason}")
