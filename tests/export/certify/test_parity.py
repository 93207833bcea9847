"""The exported graphs against plain torch.nn models that know nothing of Statewise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from statewise.model.spec import TokenInput
from statewise.plugins import load_plugin
from statewise_export.graphs.assembly import decode_graph, finish_model, step_graph
from statewise_export.graphs.weights import write_weights
from statewise_export.trace.trace import trace_step
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.checkpoints.weights import load_weights

ROWS = (1, 2, 5, 33)
TIMES = (1, 3, 17, 100)
VOCABULARY = 37

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}-{layers}": (
        kind.split("-")[0],
        {"vocabulary_size": VOCABULARY, "hidden_size": 20, "num_layers": layers, "dropout": 0.4, **extra},
    )
    for layers in (1, 2)
    for kind, extra in (
        ("rnn-tanh", {"nonlinearity": "tanh"}),
        ("rnn-relu", {"nonlinearity": "relu"}),
        ("lstm", {"embedding_size": 12}),
        ("gru", {}),
    )
} | {
    "gru-tied": ("gru", {"vocabulary_size": VOCABULARY, "hidden_size": 20, "tied_embeddings": True}),
    "lstm-real-locked": (
        "lstm",
        {"features": 4, "hidden_size": 20, "num_layers": 2, "dropout": 0.4, "dropout_kind": "locked"},
    ),
}


class Plain(nn.Module):
    """What a PyTorch user writes: an embedding, a recurrent module and a linear layer."""

    def __init__(self, family: str, options: dict[str, Any]) -> None:
        super().__init__()
        hidden, layers = options["hidden_size"], options.get("num_layers", 1)
        width = options.get("embedding_size", hidden)
        if "vocabulary_size" in options:
            self.embedding: nn.Module = nn.Embedding(options["vocabulary_size"], width)
        else:
            self.embedding, width = nn.Identity(), options["features"]
        extra = {"nonlinearity": options["nonlinearity"]} if family == "rnn" else {}
        self.rnn = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[family](
            width, hidden, layers, batch_first=True, **extra
        )
        self.output = nn.Linear(hidden, options.get("vocabulary_size", options.get("features")))
        if options.get("tied_embeddings"):
            self.output.weight = self.embedding.weight

    def forward(self, items: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.embedding(items), state)
        return self.output(hidden), state


@dataclass
class Pair:
    """A plain model, and its export in the server's runtime."""

    plain: Plain
    runner: Runner

    def items(self, rows: int, time: int) -> np.ndarray:
        rng = np.random.default_rng(100 * rows + time)
        if isinstance(self.runner.spec.input, TokenInput):
            return rng.integers(0, VOCABULARY, (rows, time))
        return rng.standard_normal((rows, time, self.runner.spec.input.features)).astype(np.float32)

    @torch.inference_mode()
    def expected(self, items: np.ndarray) -> np.ndarray:
        return self.plain(torch.from_numpy(items))[0].numpy()

    def feed(self, items: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Feed items to rows 0 and up; return the output after each row's last one."""
        rows = len(items)
        lengths = np.full(rows, items.shape[1]) if lengths is None else lengths
        uniforms = np.zeros((rows, 1), np.float32)
        result = self.runner.step(slice(0, rows), items, lengths, uniforms, num_rows=rows, with_outputs=True)
        assert result.outputs is not None
        return result.outputs

    def clear(self) -> None:
        for row in range(self.runner.pool.num_rows):
            self.runner.pool.clear_row(row)


def export(family: str, options: dict[str, Any], folder: Path) -> Pair:
    """Build a plain model, load its state dict into the plugin's module, and export that."""
    torch.manual_seed(11)
    plain = Plain(family, options).eval()
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(options)
    module = plugin.build(config)
    load_weights(module, plain.state_dict(), "the user's model")
    spec = plugin.spec(config)
    traced = trace_step(module, spec)
    weights = write_weights(folder / "weights.data", traced.weights)
    sessions = []
    for build in (step_graph, decode_graph):
        path = folder / f"{build.__name__}.onnx"
        onnx.save_model(finish_model(build(traced, spec), weights), path)
        sessions.append(create_session(path, intra_op_threads=1))
    return Pair(plain, Runner(spec, *sessions, max_rows=max(*ROWS, *TIMES)))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, options = CASES[request.param]
    return export(family, options, tmp_path_factory.mktemp(request.param))


def test_every_position_one_item_at_a_time(pair: Pair) -> None:
    """Fed item by item, in batches never seen at export, the graph gives PyTorch's outputs within 1e-5."""
    for rows in ROWS:
        pair.clear()
        items = pair.items(rows, max(TIMES))
        outputs = np.stack([pair.feed(items[:, at : at + 1]) for at in range(items.shape[1])], axis=1)

        assert np.abs(outputs - pair.expected(items)).max() < 1e-5


def test_whole_sequences(pair: Pair) -> None:
    """Fed whole, at lengths and batch sizes never seen at export, the last output and what follows are PyTorch's."""
    for rows in ROWS:
        for time in TIMES:
            pair.clear()
            items = pair.items(rows, time + 1)
            expected = pair.expected(items)

            assert np.abs(pair.feed(items[:, :time]) - expected[:, -2]).max() < 1e-5
            assert np.abs(pair.feed(items[:, time:]) - expected[:, -1]).max() < 1e-5


def test_ragged_rows(pair: Pair) -> None:
    """Rows of every length from 0 to 99 in one run each give their own last output; without items the state stays."""
    items = np.repeat(pair.items(1, 100), 100, axis=0)
    expected = pair.expected(items[:1])[0]
    pair.clear()

    lengths = np.arange(100)
    outputs = pair.feed(items, lengths)
    following = pair.feed(items[np.arange(100), lengths][:, None])

    assert np.abs(outputs[1:] - expected[:-1]).max() < 1e-5
    assert np.abs(following - expected).max() < 1e-5


def test_padding_is_not_read(pair: Pair) -> None:
    """What lies behind a row's length changes no bit of its output or state."""
    items, lengths = pair.items(5, 17), np.array([3, 17, 1, 0, 9])
    results = []
    for filling in (items, pair.items(6, 17)[:5]):
        padded = filling.copy()
        for row, length in enumerate(lengths):
            padded[row, :length] = items[row, :length]
        pair.clear()
        outputs = pair.feed(padded, lengths)
        state = [pair.runner.pool.save_row(row) for row in range(5)]
        results.append([outputs[lengths > 0].tobytes(), *(v.tobytes() for row in state for v in row.tensors.values())])

    assert results[0] == results[1]


@torch.inference_mode()
def test_what_is_fed_back(pair: Pair) -> None:
    """Greedy tokens (200) or predicted vectors (32), many steps in one run, are those of a plain PyTorch loop."""
    is_tokens = isinstance(pair.runner.spec.input, TokenInput)
    total = 200 if is_tokens else 32
    items = pair.items(3, 5)
    output, state = pair.plain(torch.from_numpy(items))
    chosen = []
    for _ in range(total):
        last = output[:, -1:].argmax(-1) if is_tokens else output[:, -1:]
        chosen.append(last[:, 0].numpy())
        output, state = pair.plain(last, state)

    pair.clear()
    first = pair.runner.step(slice(0, 3), items, np.full(3, 5), np.zeros((3, 1), np.float32), num_rows=3)
    made = [first.items[0]]
    for steps in (1, 2, 7, 64, total):
        steps = min(steps, total - len(made))
        if steps:
            made += list(pair.runner.decode(3, made[-1][:, None], np.zeros((3, steps), np.float32), num_rows=3).items)

    assert len(made) == total
    assert np.abs(np.stack(made) - np.stack(chosen)).max() < (1 if is_tokens else 1e-5)


def test_a_state_dict_of_plain_pytorch_makes_a_checkpoint(tmp_path: Path) -> None:
    """A user's LSTM, loaded by its own names, saved and loaded as a checkpoint, computes what it did."""
    family, options = CASES["lstm-2"]
    plain = Plain(family, options).eval()
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(options)
    module = plugin.build(config)
    module.load_state_dict(plain.state_dict())
    save_checkpoint(tmp_path, name="mine", plugin_name=family, config=config, module=module)

    loaded = load_checkpoint(tmp_path).module
    items = torch.randint(0, VOCABULARY, (2, 9))
    state = tuple(torch.zeros(2, 20) for _ in range(4))
    with torch.inference_mode():
        outputs = loaded.head(loaded(items, torch.tensor([9, 9]), state)[0])

        assert torch.equal(outputs, plain(items)[0])
