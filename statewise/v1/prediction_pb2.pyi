from statewise.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "inputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Items]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[_generation_pb2.Items, _Mapping]]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("predictions", "info", "labels")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    info: PredictionInfo
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., info: _Optional[_Union[PredictionInfo, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("label", "tags", "embedding", "value")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    label: Label
    tags: Tags
    embedding: Vector
    value: Vector
    def __init__(self, label: _Optional[_Union[Label, _Mapping]] = ..., tags: _Optional[_Union[Tags, _Mapping]] = ..., embedding: _Optional[_Union[Vector, _Mapping]] = ..., value: _Optional[_Union[Vector, _Mapping]] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("name", "probabilities")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class Tags(_message.Message):
    __slots__ = ("names", "probabilities", "starts", "ends")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    starts: _containers.RepeatedScalarFieldContainer[int]
    ends: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., probabilities: _Optional[_Iterable[float]] = ..., starts: _Optional[_Iterable[int]] = ..., ends: _Optional[_Iterable[int]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictionInfo(_message.Message):
    __slots__ = ("model", "version", "variant")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    variant: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., variant: _Optional[str] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("model", "version", "context", "horizon", "num_paths", "quantiles", "temperature", "seed", "return_paths")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    NUM_PATHS_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RETURN_PATHS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    context: _generation_pb2.VectorSequence
    horizon: int
    num_paths: int
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    temperature: float
    seed: int
    return_paths: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., context: _Optional[_Union[_generation_pb2.VectorSequence, _Mapping]] = ..., horizon: _Optional[int] = ..., num_paths: _Optional[int] = ..., quantiles: _Optional[_Iterable[float]] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., return_paths: _Optional[bool] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("quantiles", "mean", "paths", "info", "seed")
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    quantiles: _containers.RepeatedCompositeFieldContainer[QuantileSeries]
    mean: _generation_pb2.VectorSequence
    paths: _containers.RepeatedCompositeFieldContainer[_generation_pb2.VectorSequence]
    info: PredictionInfo
    seed: int
    def __init__(self, quantiles: _Optional[_Iterable[_Union[QuantileSeries, _Mapping]]] = ..., mean: _Optional[_Union[_generation_pb2.VectorSequence, _Mapping]] = ..., paths: _Optional[_Iterable[_Union[_generation_pb2.VectorSequence, _Mapping]]] = ..., info: _Optional[_Union[PredictionInfo, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class QuantileSeries(_message.Message):
    __slots__ = ("quantile", "values")
    QUANTILE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    quantile: float
    values: _generation_pb2.VectorSequence
    def __init__(self, quantile: _Optional[float] = ..., values: _Optional[_Union[_generation_pb2.VectorSequence, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "version", "inputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Items]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[_generation_pb2.Items, _Mapping]]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "info")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    info: PredictionInfo
    def __init__(self, scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., info: _Optional[_Union[PredictionInfo, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("log_probabilities", "total", "tokens")
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    total: float
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, log_probabilities: _Optional[_Iterable[float]] = ..., total: _Optional[float] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("model", "version", "input")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    input: _generation_pb2.Items
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., input: _Optional[_Union[_generation_pb2.Items, _Mapping]] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("items", "tensors", "info")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[str]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    info: PredictionInfo
    def __init__(self, items: _Optional[_Iterable[str]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., info: _Optional[_Union[PredictionInfo, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...
