"""What `import statewise` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import statewise


def test_public_names() -> None:
    """A name is added here on purpose; one that goes away breaks other programs."""
    assert sorted(statewise.__all__) == [
        "AsyncClient",
        "BundleError",
        "CancelledError",
        "Chunk",
        "Client",
        "ConfigError",
        "DataLossError",
        "DeadlineExceededError",
        "Forecast",
        "Generation",
        "GenerationInfo",
        "Hypothesis",
        "Inspection",
        "InternalError",
        "InvalidRequestError",
        "ModelInfo",
        "NotFoundError",
        "OverloadedError",
        "ParityError",
        "PluginConfig",
        "Prediction",
        "PredictionInfo",
        "SamplingParams",
        "Score",
        "SequencePlugin",
        "StatewiseError",
        "Tag",
        "TokenLogProbability",
        "UnavailableError",
        "Usage",
        "__version__",
        "load",
    ]
    assert all(hasattr(statewise, name) for name in statewise.__all__)


def test_client_needs_neither_torch_nor_onnxruntime() -> None:
    """A client's process imports no torch, no ONNX Runtime, no training and no server."""
    program = (
        "import statewise, sys\n"
        "heavy = {'torch', 'lightning', 'onnxruntime', 'onnx', 'server', 'training', 'export'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"
