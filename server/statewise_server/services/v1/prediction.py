"""statewise.v1.PredictionService: requests in, one answer for each whole sequence or series out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from statewise.v1 import prediction_pb2 as pb
from statewise.v1.prediction_pb2_grpc import PredictionServiceServicer
from statewise_server.local.async_model import AsyncGenerator, AsyncPredictor
from statewise_server.local.forecasting import ForecastLimits
from statewise_server.local.reading import deadline_after
from statewise_server.services.v1 import requests, responses

if TYPE_CHECKING:
    from statewise_server.repository.repository import Repository

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PredictionService"].full_name


class PredictionService(PredictionServiceServicer):
    """Serves every model of a repository."""

    def __init__(self, repository: Repository, forecast_limits: ForecastLimits) -> None:
        self._repository = repository
        self._forecast_limits = forecast_limits

    # Responses are made in a thread: millions of numbers take long enough for running streams to notice.

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802 - the rpc's name
        """Labels, tags, embeddings or values of whole sequences."""
        deadline = deadline_after(context.time_remaining())
        model = self._predictor(request)
        with requests.input_fields(request):
            predictions = await model.predict(requests.inputs_from(request), deadline)
        return await asyncio.to_thread(responses.predict_response, predictions, model.predictor)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """Score whole sequences."""
        deadline = deadline_after(context.time_remaining())
        model = self._predictor(request)
        with requests.input_fields(request):
            scores = await model.score(requests.inputs_from(request), deadline)
        return await asyncio.to_thread(responses.score_response, scores)

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:  # noqa: N802
        """Attention weights or gate activations at every item of a sequence."""
        deadline = deadline_after(context.time_remaining())
        model = self._predictor(request)
        with requests.inspect_fields(request):
            inspection = await model.inspect(requests.items_from(request.input, "input"), deadline)
        return await asyncio.to_thread(responses.inspect_response, inspection)

    async def Forecast(self, request: pb.ForecastRequest, context: Any) -> pb.ForecastResponse:  # noqa: N802
        """Sample how a series goes on."""
        deadline = deadline_after(context.time_remaining())
        model = AsyncGenerator(self._repository.get(request.model, requests.read_version(request.version)))
        options, given = requests.forecast_options(request), requests.vectors_from(request.context)
        with requests.forecast_fields():
            forecast = await model.forecast(given, request.horizon, options, self._forecast_limits, deadline)
        return await asyncio.to_thread(responses.forecast_response, forecast)

    def _predictor(self, request: pb.PredictRequest | pb.ScoreRequest | pb.InspectRequest) -> AsyncPredictor:
        return AsyncPredictor(self._repository.predictor(request.model, requests.read_version(request.version)))
