"""The copy task: one symbol, then blanks; at the last blank the symbol must be predicted.

The memory needed is minimal and its duration known, so accuracy shows the distance over which a family learns
(Hochreiter and Schmidhuber 1997, section 5, with noise in place of blanks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from statewise.errors import ConfigError, NotFoundError
from statewise.model.spec import ModelSpec
from statewise.plugins import load_plugin
from statewise_training.families.shared.state import zero_state
from statewise_training.run.module import unroll

NUM_SYMBOLS = 8
CHANCE = 1 / NUM_SYMBOLS
_BLANK = NUM_SYMBOLS
_BATCH_SIZE = 32
_NUM_TEST_ROWS = 512
_LEARNING_RATE = 2e-3
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class CopyModel:
    """Step function of a family, over the symbols and the blank."""

    family: str
    module: nn.Module
    spec: ModelSpec

    def logits(self, items: Tensor) -> Tensor:
        """Logits `[row, vocabulary]` after the last of `items` `[row, time]`."""
        return unroll(self.module, self.spec, items)[:, -1]


def build(family: str, hidden_size: int, seed: int) -> CopyModel:
    """Build an untrained model. Raises ConfigError for an unknown family, or one without vectors as state."""
    try:
        plugin = load_plugin(family)
        config = plugin.config_class.model_validate({"vocabulary_size": NUM_SYMBOLS + 1, "hidden_size": hidden_size})
    except NotFoundError as error:
        raise ConfigError(f"families: {error}") from error
    except ValidationError as error:
        raise ConfigError(_refusal(family)) from error
    spec = plugin.spec(config)
    if any(state.kind != "recurrent" or state.dtype == "int64" for state in spec.state):
        raise ConfigError(_refusal(family))
    torch.manual_seed(seed)
    return CopyModel(family, plugin.build(config), spec)


def _refusal(family: str) -> str:
    return (
        f"families: {family!r} carries no hidden vector of a given size from step to step, which this gradient is of; "
        "take rnn, lstm or gru"
    )


def make_batch(num_rows: int, distance: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw items int64 `[row, distance + 1]`, a symbol and `distance` blanks, and the symbols `[row]`."""
    symbols = torch.randint(NUM_SYMBOLS, (num_rows,), generator=generator)
    return F.pad(symbols[:, None], (0, distance), value=_BLANK), symbols


def train(model: CopyModel, distance: int, num_steps: int, seed: int, on_step: Callable[[], object]) -> None:
    """Train with Adam on batches of random distance, 1 to `distance`: short distances help to learn long ones."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=_LEARNING_RATE)
    for _ in range(num_steps):
        drawn = int(torch.randint(1, distance + 1, (), generator=generator))
        items, symbols = make_batch(_BATCH_SIZE, drawn, generator)
        optimizer.zero_grad()
        F.cross_entropy(model.logits(items), symbols).backward()
        nn.utils.clip_grad_norm_(model.module.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        on_step()


@torch.inference_mode()
def measure_accuracy(model: CopyModel, distance: int, seed: int) -> float:
    """Share of new sequences whose symbol is predicted after `distance` blanks; blanks are not candidates."""
    items, symbols = make_batch(_NUM_TEST_ROWS, distance, torch.Generator().manual_seed(seed + 1))
    return float((model.logits(items)[:, :NUM_SYMBOLS].argmax(-1) == symbols).float().mean())


def gradient_norms(model: CopyModel, distance: int, seed: int) -> list[float]:
    """Norm of d(logit of the right symbol) / d(state 1, 2, ... `distance` steps back), relative to the first.

    Mean over rows of the Euclidean norm over all state vectors. Uses the logit, not the loss: the loss of a model that
    has solved the task is flat.
    """
    items, symbols = make_batch(_NUM_TEST_ROWS, distance, torch.Generator().manual_seed(seed + 1))
    state = zero_state(model.spec, len(items), 0)
    one = torch.ones(len(items), dtype=torch.int64)
    states: list[tuple[Tensor, ...]] = []
    for item in items.T:
        hidden, state = model.module(item[:, None], one, state)
        states.append(state)
    told = model.module.head(hidden)[:, -1].gather(1, symbols[:, None]).sum()
    # The last state is not an input of the output computed with it.
    vectors = [torch.stack(gradients) for gradients in _gradients(told, states[-2::-1])]
    norms = [float(vector.square().sum((0, 2)).sqrt().mean()) for vector in vectors]
    return [norm / norms[0] for norm in norms]


def _gradients(output: Tensor, states: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    size = len(states[0])
    flat = torch.autograd.grad(output, [vector for state in states for vector in state])
    return [flat[start : start + size] for start in range(0, len(flat), size)]
