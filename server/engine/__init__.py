"""Policy only: which sequence runs when, and when it ends."""

from server.engine.engine import Engine
from server.engine.request import Channel, Delta, GenerationRequest, Stream, TokenLogProbability
from server.engine.settings import EngineSettings

__all__ = ["Channel", "Delta", "Engine", "EngineSettings", "GenerationRequest", "Stream", "TokenLogProbability"]
