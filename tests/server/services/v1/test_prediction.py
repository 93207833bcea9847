"""PredictionService over a real connection: Predict and Score, what they refuse, and who gets which answer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from statewise.plugins import load_plugin
from statewise.v1 import generation_pb2, generation_pb2_grpc
from statewise.v1 import prediction_pb2 as pb
from statewise.v1.prediction_pb2_grpc import PredictionServiceStub
from statewise_export.pipeline import export_checkpoint
from statewise_server.app import Application
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.data.tokenizers import byte_level
from tests.serving import running_server
from tests.small_encoders import NAN_TOKEN, UNKNOWN_TOKEN

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def add_encoder(repository: Path, name: str, *, is_text: bool, **settings: Any) -> None:
    """Export a small GRU encoder with random weights."""
    plugin = load_plugin("gru_encoder")
    config = plugin.config_class.model_validate({"hidden_size": 16, "num_layers": 1, "max_positions": 40} | settings)
    torch.manual_seed(2)
    with tempfile.TemporaryDirectory() as scratch:
        byte_level().save(str(Path(scratch) / "tokenizer.json"))
        save_checkpoint(
            Path(scratch),
            name=name,
            plugin_name=plugin.name,
            config=config,
            module=plugin.build(config),
            tokenizer_file=Path(scratch) / "tokenizer.json" if is_text else None,
        )
        assert export_checkpoint(load_checkpoint(Path(scratch)), repository).folder is not None


@pytest.fixture(scope="module")
def stub(server: Application) -> Iterator[PredictionServiceStub]:
    """The server of the other tests has what generates and `sums`."""
    with grpc.insecure_channel(server.address) as channel:
        yield PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictionServiceStub]:
    """A server with `tagger` (text to tags) and `embedder` (vectors to a vector), which waits long for full batches."""
    repository = tmp_path_factory.mktemp("encoders")
    add_encoder(repository, "tagger", is_text=True, vocabulary_size=258, labels=("x", "y"), labels_per="item")
    add_encoder(repository, "embedder", is_text=False, features=3, head="embedding", vector_size=5)
    with (
        running_server(models=repository, engine={"batch_delay_ms": 20, "max_batch_rows": 8}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield PredictionServiceStub(channel)


def text(*texts: str) -> list[generation_pb2.Items]:
    return [generation_pb2.Items(text=one) for one in texts]


def ids(*sequences: list[int]) -> list[generation_pb2.Items]:
    return [generation_pb2.Items(tokens=generation_pb2.TokenSequence(ids=one)) for one in sequences]


def vectors(*sequences: Any, features: int | None = None) -> list[generation_pb2.Items]:
    return [
        generation_pb2.Items(
            vectors=generation_pb2.VectorSequence(
                features=np.shape(one)[-1] if features is None else features, values=np.ravel(one).tolist()
            )
        )
        for one in sequences
    ]


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_labels_come_with_the_probability_of_each(stub: PredictionServiceStub) -> None:
    """Logits of 3 and 30, and of 0 and 0: a softmax over the labels, and of equal ones the first."""
    response = stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1, 2], [0])))

    sure, torn = (prediction.label for prediction in response.predictions)
    assert list(response.labels) == ["first", "second"]
    assert (sure.name, torn.name) == ("second", "first")
    assert list(torn.probabilities) == [0.5, 0.5]
    assert sure.probabilities[0] == pytest.approx(math.exp(-27), rel=1e-5)
    assert (response.info.model, response.info.version, response.info.variant) == ("sums", 1, "cpu-float32")


def test_tags_say_where_their_items_stand_in_the_text(encoders: PredictionServiceStub) -> None:
    """One tag for each byte, with the characters that it belongs to: two bytes of one character share its place."""
    response = encoders.Predict(pb.PredictRequest(model="tagger", inputs=text("né!", "a")))

    tags = response.predictions[0].tags
    assert list(tags.starts) == [0, 1, 1, 2]
    assert list(tags.ends) == [1, 2, 2, 3]
    assert set(tags.names) <= {"x", "y"}
    assert all(0.5 <= probability <= 1 for probability in tags.probabilities)
    assert len(response.predictions[1].tags.names) == 1


def test_a_sequence_of_ids_has_tags_without_places(encoders: PredictionServiceStub) -> None:
    """The same ids as the text's, without the text: the same tags, and nothing to point into."""
    as_text = encoders.Predict(pb.PredictRequest(model="tagger", inputs=text("ab"))).predictions[0].tags
    as_ids = encoders.Predict(pb.PredictRequest(model="tagger", inputs=ids([99, 100]))).predictions[0].tags

    assert list(as_ids.starts) == []
    assert list(as_ids.probabilities) == list(as_text.probabilities)


def test_answers_never_mix(encoders: PredictionServiceStub) -> None:
    """Two hundred sequences of eight callers at once: each gets, bit for bit, what it gets alone."""
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((length, 3)).astype(np.float32) for length in rng.integers(1, 41, 200)]

    def embed(one: Any) -> list[float]:
        request = pb.PredictRequest(model="embedder", inputs=vectors(one))
        return list(encoders.Predict(request, timeout=30).predictions[0].embedding.values)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(embed, sequences))
    whole = encoders.Predict(pb.PredictRequest(model="embedder", inputs=vectors(*sequences)), timeout=30)

    assert len({tuple(answer) for answer in together}) == 200
    assert [list(prediction.embedding.values) for prediction in whole.predictions] == together
    assert [embed(sequences[index]) for index in range(0, 200, 40)] == together[::40]


def test_a_score_is_what_generate_says_of_its_own_tokens(server: Application, stub: PredictionServiceStub) -> None:
    """The log-probabilities of a generated text are those that came with it; the start token is the server's."""
    with grpc.insecure_channel(server.address) as channel:
        request = generation_pb2.GenerateRequest(
            model="text",
            text="a",
            sampling=generation_pb2.SamplingParameters(seed=3),
            stop=generation_pb2.StopConditions(max_tokens=20, ignore_end_token=True),
            log_probabilities=generation_pb2.LogProbabilityOptions(),
        )
        chunks = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request))
    tokens = [token for chunk in chunks for token in chunk.tokens]
    told = [entry.log_probability for chunk in chunks for entry in chunk.log_probabilities]

    (score,) = stub.Score(pb.ScoreRequest(model="text", inputs=ids([99, *tokens]))).scores

    assert list(score.tokens) == [99, *tokens]
    assert len(score.log_probabilities) == 21
    np.testing.assert_allclose(score.log_probabilities[1:], told, atol=1e-5)
    assert score.total == pytest.approx(sum(score.log_probabilities))


def test_without_a_start_token_the_first_item_has_no_probability(stub: PredictionServiceStub) -> None:
    """`plain` has no start token: of one item nothing can be said, of three there are two."""
    alone, three = stub.Score(pb.ScoreRequest(model="plain", inputs=ids([5], [5, 6, 7]))).scores

    assert (list(alone.log_probabilities), alone.total) == ([], 0)
    assert len(three.log_probabilities) == 2


BAD: dict[str, tuple[list[generation_pb2.Items], str]] = {
    "no sequences": ([], "inputs: a request has 1 to 256 sequences, got 0"),
    "too many": (ids(*[[1]] * 257), "inputs: a request has 1 to 256 sequences, got 257"),
    "nothing in it": ([generation_pb2.Items()], r"inputs[0]: is missing"),
    "no items": (ids([1], []), "inputs[1].tokens.ids: is empty"),
    "too long": (ids([1] * 65), "inputs[0].tokens.ids: has 65 items, a start token included; at most 64"),
    "outside": (ids([1], [2, 9]), "inputs[1].tokens.ids: id 9 is outside the vocabulary (0 to 8)"),
    "negative": (ids([-1]), "inputs[0].tokens.ids: id -1 is outside"),
    "no tokenizer": (text("a"), "inputs[0].text: model 'sums' has no tokenizer; send token ids"),
    "vectors": (vectors([[1.0]]), "inputs[0].vectors.values: model 'sums' reads tokens or text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_its_field(name: str, stub: PredictionServiceStub) -> None:
    """Each is INVALID_ARGUMENT with the place and the numbers, and what follows is answered."""
    inputs, message = BAD[name]

    code, details = refusal(lambda: stub.Predict(pb.PredictRequest(model="sums", inputs=inputs)))

    assert code == INVALID
    assert details.startswith(message)
    assert stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1]))).predictions


BAD_VECTORS: dict[str, tuple[list[generation_pb2.Items], str]] = {
    "width": (vectors([[1.0, 2.0]]), "inputs[0].vectors.features: model 'embedder' reads 3 features, got 2"),
    "broken off": (vectors([1.0] * 4, features=3), "inputs[0].vectors.values: must hold time x 3 numbers"),
    "nan": (vectors([[0.0, math.nan, 0.0]]), "inputs[0].vectors.values: holds NaN or infinity"),
    "empty": (vectors([], features=3), "inputs[0].vectors.values: must hold time x 3 numbers, time at least 1; got 0"),
    "too long": (vectors(np.zeros((41, 3))), "inputs[0].vectors.values: has 41 items"),
    "text": (text("a"), "inputs[0].text: model 'embedder' reads vectors"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_bad_vectors_are_refused_by_their_field(name: str, encoders: PredictionServiceStub) -> None:
    """A wrong width, a number too many, NaN and the like."""
    inputs, message = BAD_VECTORS[name]

    code, details = refusal(lambda: encoders.Predict(pb.PredictRequest(model="embedder", inputs=inputs)))

    assert code == INVALID
    assert details.startswith(message)


def test_the_wrong_kind_of_model_names_the_right_rpc(server: Application, stub: PredictionServiceStub) -> None:
    """Predict on a model that generates, Score on one that does not, Score of values, Generate on an encoder."""
    inputs = ids([1])
    with grpc.insecure_channel(server.address) as channel:
        generate = generation_pb2_grpc.GenerationServiceStub(channel).Generate
        refused = [
            refusal(lambda: stub.Predict(pb.PredictRequest(model="text", inputs=inputs))),
            refusal(lambda: stub.Score(pb.ScoreRequest(model="sums", inputs=inputs))),
            refusal(lambda: stub.Score(pb.ScoreRequest(model="sum", inputs=inputs))),
            refusal(lambda: list(generate(generation_pb2.GenerateRequest(model="sums")))),
        ]

    assert {code for code, _ in refused} == {INVALID}
    assert [details for _, details in refused] == [
        "model: 'text' cannot Predict: it only generates; use Generate",
        "model: 'sums' cannot Score: use Predict",
        "model: 'sum' cannot Score: Score is for models that generate tokens or mixtures from a prompt alone",
        "model: 'sums' does not generate; use Predict",
    ]


def test_one_bad_answer_or_run_is_told_to_its_caller_alone(stub: PredictionServiceStub) -> None:
    """NaN is DATA_LOSS with the sequence's place, a run that fails INTERNAL, and the next request is answered."""
    lost = refusal(lambda: stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1], [NAN_TOKEN]))))
    failed = refusal(lambda: stub.Predict(pb.PredictRequest(model="sums", inputs=ids([UNKNOWN_TOKEN]))))

    assert lost == (grpc.StatusCode.DATA_LOSS, "inputs[1]: the model's output is NaN or infinite for this sequence")
    assert failed[0] == grpc.StatusCode.INTERNAL
    assert stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1]))).predictions


def test_unknown_names_and_versions_are_refused(stub: PredictionServiceStub) -> None:
    """A model that is not there, a refused one, a version below 0."""
    inputs = ids([1])

    assert refusal(lambda: stub.Predict(pb.PredictRequest(model="none", inputs=inputs)))[0] == grpc.StatusCode.NOT_FOUND
    code, _ = refusal(lambda: stub.Score(pb.ScoreRequest(model="broken", inputs=inputs)))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    code, details = refusal(lambda: stub.Score(pb.ScoreRequest(model="text", version=-1, inputs=inputs)))
    assert (code, details) == (INVALID, "version: must be 0 (newest) or more, got -1")


def test_a_caller_who_goes_away_leaves_nothing_waiting(server: Application, stub: PredictionServiceStub) -> None:
    """Cancelled calls and calls past their deadline take their sequences out of the queue."""
    calls = [stub.Predict.future(pb.PredictRequest(model="sums", inputs=ids(*[[1]] * 200))) for _ in range(5)]
    for call in calls:
        call.cancel()
    code, _ = refusal(lambda: stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1])), timeout=1e-4))

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    batcher = server.repository.predictor("sums").batcher("predict")
    end = time.monotonic() + 10
    while batcher.num_waiting and time.monotonic() < end:
        time.sleep(0.005)
    assert batcher.num_waiting == 0
    assert stub.Predict(pb.PredictRequest(model="sums", inputs=ids([1]))).predictions
    assert batcher.is_healthy


def test_models_say_what_they_can_be_asked(server: Application) -> None:
    """ListModels names methods, labels, kinds and limits of models that do not generate too."""
    with grpc.insecure_channel(server.address) as channel:
        listed = generation_pb2_grpc.GenerationServiceStub(channel).ListModels(generation_pb2.ListModelsRequest())
    models = {model.name: model for model in listed.models}

    assert list(models["text"].methods) == ["Generate", "Score"]
    assert list(models["sum"].methods) == ["Generate"]
    sums = models["sums"]
    assert (list(sums.methods), list(sums.labels)) == (["Predict"], ["first", "second"])
    assert (sums.head_kind, sums.variant, sums.max_items, sums.max_rows) == ("labels", "cpu-float32", 64, 0)
