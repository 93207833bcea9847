"""Policy only: which sequence runs when, and when it ends."""

from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.request import Channel, Delta, GenerationRequest, Stream, TokenLogProbability
from statewise_server.engine.settings import EngineSettings

__all__ = ["Channel", "Delta", "Engine", "EngineSettings", "GenerationRequest", "Stream", "TokenLogProbability"]
