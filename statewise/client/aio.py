"""The client for asyncio; its twin for ordinary code is `statewise.client.sync`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, Unpack

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from statewise.client import core, forecasting, predicting
from statewise.client.options import ForecastOptions, GenerateOptions
from statewise.client.values import Chunk, Forecast, Generation, Inspection, ModelInfo, Prediction, Prompt, Score
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise.v1.prediction_pb2_grpc import PredictionServiceStub


class AsyncChunkStream:
    """An answer as it is made: iterate over it. Leaving it early cancels the rest on the server."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        # Not `call.read()`, which can miss what came together with the end.
        self._messages = call.__aiter__()
        self._address = address
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._is_closed:
            raise StopAsyncIteration
        with core.errors_mapped(self._address):
            return core.chunk_from(await self._messages.__anext__())

    async def close(self) -> None:
        """Cancel what is not there yet; does nothing for a stream that has ended."""
        self._is_closed = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __del__(self) -> None:
        self._call.cancel()


class AsyncClient:
    """A connection to a Statewise server, for one event loop.

    `timeout` is the default of every call, in seconds; `credentials` makes the connection TLS. Nothing is
    sent until the first call. Every method raises the errors of `statewise.errors`.
    """

    def __init__(
        self,
        address: str = core.DEFAULT_ADDRESS,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, core.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, core.CHANNEL_OPTIONS)
        stub: Any = GenerationServiceStub  # generated, without types
        self._stub = stub(self._channel)
        prediction_stub: Any = PredictionServiceStub
        self._prediction_stub = prediction_stub(self._channel)

    def stream(self, model: str, prompt: Prompt = "", **options: Unpack[GenerateOptions]) -> AsyncChunkStream:
        """Continue a prompt, giving the answer as it is made; options as in `GenerateOptions`."""
        request = core.generate_request(model, prompt, options)
        with core.errors_mapped(self.address):
            call = self._stub.Generate(request, timeout=self._seconds(options.get("timeout")))
        return AsyncChunkStream(call, self.address)

    async def generate(self, model: str, prompt: Prompt = "", **options: Unpack[GenerateOptions]) -> Generation:
        """Continue a prompt, and return the whole answer; options as in `GenerateOptions`."""
        async with self.stream(model, prompt, **options) as chunks:
            return core.fold([chunk async for chunk in chunks])

    async def predict(
        self, model: str, inputs: Sequence[Prompt], *, version: int = 0, timeout: float | None = None
    ) -> list[Prediction]:
        """Predict whole sequences: labels, tags, embeddings or values, one result for each."""
        request = predicting.predict_request(model, inputs, version)
        with core.errors_mapped(self.address):
            response = await self._prediction_stub.Predict(request, timeout=self._seconds(timeout))
        return predicting.predictions_from(response)

    async def embed(
        self, model: str, inputs: Sequence[Prompt], *, version: int = 0, timeout: float | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the embedding of each whole sequence, float32 `[size]`."""
        return predicting.embeddings_from(await self.predict(model, inputs, version=version, timeout=timeout))

    async def score(
        self, model: str, inputs: Sequence[Prompt], *, version: int = 0, timeout: float | None = None
    ) -> list[Score]:
        """Score whole sequences with a generating model, item by item."""
        request = predicting.score_request(model, inputs, version)
        with core.errors_mapped(self.address):
            response = await self._prediction_stub.Score(request, timeout=self._seconds(timeout))
        return predicting.scores_from(response)

    async def inspect(
        self, model: str, sequence: Prompt, *, version: int = 0, timeout: float | None = None
    ) -> Inspection:
        """Return attention weights or gate activations of a sequence; the model must be exported with `--inspect`."""
        request = predicting.inspect_request(model, sequence, version)
        with core.errors_mapped(self.address):
            response = await self._prediction_stub.Inspect(request, timeout=self._seconds(timeout))
        return predicting.inspection_from(response)

    async def forecast(
        self, model: str, context: ArrayLike, horizon: int, **options: Unpack[ForecastOptions]
    ) -> Forecast:
        """Sample how a series `[time, features]`, or `[time]` of one feature, goes on for `horizon` items."""
        request = forecasting.forecast_request(model, context, horizon, options)
        with core.errors_mapped(self.address):
            response = await self._prediction_stub.Forecast(request, timeout=self._seconds(options.get("timeout")))
        return forecasting.forecast_from(response, context)

    async def models(self) -> list[ModelInfo]:
        """List the server's models, also those that it has refused, with the reason."""
        with core.errors_mapped(self.address):
            response = await self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout)
        return [core.model_from(model) for model in response.models]

    async def model(self, name: str, version: int = 0) -> ModelInfo:
        """Describe one model; version 0 is the newest that is ready."""
        with core.errors_mapped(self.address):
            request = pb.GetModelRequest(model=name, version=version)
            response = await self._stub.GetModel(request, timeout=self._timeout)
        return core.model_from(response.model)

    def _seconds(self, timeout: float | None) -> float | None:
        """Return a call's timeout; by default the client's."""
        return self._timeout if timeout is None else timeout

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
