"""Clients of a Statewise server: the logic in `core`, two thin classes around it."""

from statewise.client.aio import AsyncChunkStream, AsyncClient
from statewise.client.core import DEFAULT_ADDRESS, GenerateOptions
from statewise.client.sync import ChunkStream, Client
from statewise.client.values import (
    Chunk,
    FinishReason,
    Generation,
    GenerationInfo,
    Hypothesis,
    Model,
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
    "GenerateOptions",
    "Generation",
    "GenerationInfo",
    "Hypothesis",
    "Model",
    "Prediction",
    "PredictionInfo",
    "Prompt",
    "Score",
    "Tag",
    "TokenLogProbability",
    "Usage",
]
