"""A plugin's module is held to the methods that its plugin promises."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from statewise.errors import ConfigError
from statewise.model.spec import CategoricalHead, EmbeddingHead, ModelSpec, StateSpec, TokenInput
from statewise.modules import Embeds, StepModule, require
from statewise.plugins import PluginConfig, SequencePlugin, build_module, load_plugin


class Step(nn.Module):
    """A step whose head is a layer, without any further method."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, items: Tensor, lengths: Tensor, state: Any) -> Any:
        return state[0][:, None], state


class Everything(Step):
    """A step with every method of the plugin API."""

    def encode(self, source: Tensor, source_lengths: Tensor) -> Any: ...

    def embed(self, items: Tensor, lengths: Tensor) -> Any: ...

    def forward_mixed(self, items: Tensor, state: Any, chunk: Tensor, chunk_state: Any) -> Any: ...

    def inspect(self, items: Tensor, lengths: Tensor) -> Any: ...


class Promising(SequencePlugin[PluginConfig]):
    """A plugin that promises what it is told to, of the module that it is given."""

    name = "promising"
    config_class = PluginConfig

    def __init__(self, module: nn.Module, *, mixes: bool = False, inspects: bool = False, **fields: Any) -> None:
        self.module = module
        self.mixes = mixes  # type: ignore[misc] # of the class in a real plugin
        self.shows = inspects
        self.fields = fields

    def spec(self, config: PluginConfig) -> ModelSpec:
        return ModelSpec(
            input=TokenInput(vocabulary_size=5),
            head=CategoricalHead(vocabulary_size=5),
            state=(StateSpec(name="hidden", shape=("row", 4)),),
            **self.fields,
        )

    def build(self, config: PluginConfig) -> nn.Module:
        return self.module

    def inspects(self, config: PluginConfig) -> bool:
        return self.shows

    def loss(self, config: PluginConfig, output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


PROMISES: dict[str, dict[str, Any]] = {
    "encode": {"source": TokenInput(vocabulary_size=3), "max_source_positions": 7},
    "embed": {"embedding": EmbeddingHead(size=4)},
    "forward_mixed": {"mixes": True},
    "inspect": {"inspects": True},
}


@pytest.mark.parametrize("method", PROMISES)
def test_a_promised_method_that_is_missing_is_named(method: str) -> None:
    """The error names the plugin, the module, the method and the promise."""
    with pytest.raises(ConfigError, match=rf"^plugin 'promising': its module Step has no method `{method}`, but it"):
        build_module(Promising(Step(), **PROMISES[method]), PluginConfig())


@pytest.mark.parametrize("method", PROMISES)
def test_a_module_with_a_promised_method_is_built(method: str) -> None:
    """Where the method is there, the module is given as the plugin made it."""
    module = Everything()

    assert build_module(Promising(module, **PROMISES[method]), PluginConfig()) is module


def test_a_module_without_a_head_is_refused() -> None:
    """Every module needs one, whatever its plugin promises."""
    with pytest.raises(ConfigError, match="its module Linear has no method `head`, but every module has it"):
        build_module(Promising(nn.Linear(2, 2)), PluginConfig())


def test_a_head_may_be_a_layer() -> None:
    """A submodule is called like a method, so it counts as one; further methods are needed only where promised."""
    module = Step()

    assert build_module(Promising(module), PluginConfig()) is module
    assert require(module, StepModule) is module


def test_a_method_that_is_required_of_a_module_is_named() -> None:
    """A caller that requires a protocol of a module is told the first method that it lacks."""
    with pytest.raises(ConfigError, match=r"^module Step has no method `embed`; see statewise\.modules\.Embeds$"):
        require(Step(), Embeds)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", {"vocabulary_size": 5, "hidden_size": 4}),
        ("transformer", {"vocabulary_size": 5, "hidden_size": 8, "num_heads": 1, "num_layers": 1, "max_positions": 9}),
    ],
)
def test_families_keep_their_promises(name: str, options: dict[str, Any]) -> None:
    """The module of a family with further methods has them all."""
    plugin = load_plugin(name)
    config = plugin.config_class.model_validate(options)

    assert plugin.inspects(config)
    build_module(plugin, config)
