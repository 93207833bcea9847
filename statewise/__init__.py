"""Statewise: what clients and plugin authors import.

A model in this process: `with load("models/NAME") as model: print(model.generate("prompt").text)`.
A client: `with Client() as client: print(client.generate("model", "prompt").text)`.
A plugin: a subclass of `SequencePlugin`, announced under the entry-point group `statewise.plugins`.
"""

from importlib.metadata import version as _version

from statewise.client import (
    AsyncClient,
    Chunk,
    Client,
    Forecast,
    Generation,
    GenerationInfo,
    Hypothesis,
    Inspection,
    ModelInfo,
    Prediction,
    PredictionInfo,
    Score,
    Tag,
    TokenLogProbability,
    Usage,
)
from statewise.errors import (
    BundleError,
    CancelledError,
    ConfigError,
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ParityError,
    StatewiseError,
    UnavailableError,
)
from statewise.loading import load
from statewise.plugins import PluginConfig, SequencePlugin
from statewise.rules.sampling import SamplingParams

__version__ = _version("statewise")

__all__ = [
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
