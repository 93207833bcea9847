"""Statewise: what clients and plugin authors import.

A model in this process: `with load("models/NAME") as model: print(model.generate("prompt").text)`.
A client: `with Client() as client: print(client.generate("model", "prompt").text)`.
A plugin: a subclass of `SequencePlugin`, announced under the entry-point group `statewise.plugins`.

Everything but the errors is imported when it is first used, so that `import statewise` takes milliseconds.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from statewise.errors import (
    BundleError,
    CancelledError,
    ConfigError,
    DataLossError,
    DeadlineExceededError,
    DivergedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ParityError,
    StatewiseError,
    UnavailableError,
)

if TYPE_CHECKING:
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
    from statewise.loading import load
    from statewise.plugins import PluginConfig, SequencePlugin
    from statewise.rules.sampling import SamplingParams

    __version__: str

__all__ = [
    "AsyncClient",
    "BundleError",
    "CancelledError",
    "Chunk",
    "Client",
    "ConfigError",
    "DataLossError",
    "DeadlineExceededError",
    "DivergedError",
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

_MODULES = {
    "PluginConfig": "statewise.plugins",
    "SamplingParams": "statewise.rules.sampling",
    "SequencePlugin": "statewise.plugins",
    "__version__": "statewise.versions",
    "load": "statewise.loading",
}
"""The module of each public name that is imported on first use; a name that is not here is the client's."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'statewise' has no attribute {name!r}")
    value = getattr(_import_module(_MODULES.get(name, "statewise.client")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
