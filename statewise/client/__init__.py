"""Clients of a Statewise server: the logic in `core`, two thin classes around it."""

from statewise.client.aio import AsyncChunkStream, AsyncClient
from statewise.client.core import DEFAULT_ADDRESS
from statewise.client.options import ForecastOptions, GenerateOptions
from statewise.client.sync import ChunkStream, Client
from statewise.client.values import (
    Chunk,
    FinishReason,
    Forecast,
    Generation,
    GenerationInfo,
    Hypothesis,
    Inspection,
    ModelInfo,
    Prediction,
    PredictionInfo,
    Prompt,
    Score,
    Tag,
    TokenLogProbability,
    Usage,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncChunkStream",
    "AsyncClient",
    "Chunk",
    "ChunkStream",
    "Client",
    "FinishReason",
    "Forecast",
    "ForecastOptions",
    "GenerateOptions",
    "Generation",
    "GenerationInfo",
    "Hypothesis",
    "Inspection",
    "ModelInfo",
    "Prediction",
    "PredictionInfo",
    "Prompt",
    "Score",
    "Tag",
    "TokenLogProbability",
    "Usage",
]
