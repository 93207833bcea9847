"""statewise.v1.PredictionService: one answer for a whole sequence. Each rpc has a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from statewise.v1 import prediction_pb2 as pb
from statewise.v1.prediction_pb2_grpc import PredictionServiceServicer
from statewise_server.services.v1.forecast import ForecastLimits, forecast
from statewise_server.services.v1.inspection import inspect
from statewise_server.services.v1.predict import predict
from statewise_server.services.v1.score import score

if TYPE_CHECKING:
    from statewise_server.repository.repository import Repository

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PredictionService"].full_name


class PredictionService(PredictionServiceServicer):
    """Serves every model of a repository."""

    def __init__(self, repository: Repository, forecast_limits: ForecastLimits) -> None:
        self._repository = repository
        self._forecast_limits = forecast_limits

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802 - the rpc's name
        """Labels, tags, embeddings or values of whole sequences."""
        return await predict(request, self._repository, context.time_remaining())

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """How probable a model finds given sequences, item by item."""
        return await score(request, self._repository, context.time_remaining())

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:  # noqa: N802
        """What a model attends to, or how its gates stand, at every item of a sequence."""
        return await inspect(request, self._repository, context.time_remaining())

    async def Forecast(self, request: pb.ForecastRequest, context: Any) -> pb.ForecastResponse:  # noqa: N802
        """Sample how a series goes on."""
        return await forecast(request, self._repository, self._forecast_limits, context.time_remaining())
