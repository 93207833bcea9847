"""The tokens that a tokenizer's post-processor puts around a text, and the checkpoints that record them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from statewise.bundles.manifest import SpecialTokens, Surround
from statewise.errors import ConfigError
from statewise.plugins import load_plugin
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.data.surround import surround_of
from statewise_training.data.tokenizers import byte_level
from tests.bert_like import CLS, SEP, VOCABULARY_SIZE, bert_like, save_bert_like


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("[CLS] $A [SEP]", (CLS,), (SEP,)),
        ("$A [SEP]", (), (SEP,)),
        ("[CLS] $A", (CLS,), ()),
        ("$A [SEP] [CLS]", (), (SEP, CLS)),
        ("[SEP] $A [SEP]", (SEP,), (SEP,)),
    ],
)
def test_a_template_is_taken_apart(template: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """What stands before a text and what stands behind it, whatever the text."""
    assert surround_of(bert_like(template), "t.json") == Surround(before=before, after=after)


def test_a_tokenizer_without_post_processor_adds_nothing() -> None:
    """The tokenizers that training makes add no tokens."""
    assert surround_of(byte_level(), "t.json") == Surround()


def test_other_post_processors_are_read_too() -> None:
    """RoBERTa's is no template, and is read by what it does."""
    tokenizer = byte_level()
    tokenizer.post_processor = RobertaProcessing(("<end>", 1), ("<start>", 0))

    assert surround_of(tokenizer, "t.json") == Surround(before=(0,), after=(1,))


def test_a_vocabulary_of_symbols_is_enough() -> None:
    """A tokenizer that knows no ordinary word is asked with its own tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "☃☃": 1, "☀": 2}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])

    assert surround_of(tokenizer, "t.json") == Surround(before=(0,))


def test_a_text_that_comes_twice_is_refused() -> None:
    """No fixed tokens before and behind describe a template that repeats the text; the message names the file."""
    with pytest.raises(ConfigError, match=r"t\.json: its post-processor .* fixed tokens"):
        surround_of(bert_like("[CLS] $A [SEP] $A [SEP]"), "t.json")


def save(folder: Path, plugin_name: str, settings: dict[str, Any], special: SpecialTokens = SpecialTokens()) -> Any:  # noqa: B008 # frozen
    plugin = load_plugin(plugin_name)
    config = plugin.config_class.model_validate({"hidden_size": 8, **settings})
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder,
        name="m",
        plugin_name=plugin_name,
        config=config,
        module=plugin.build(config),
        special_tokens=special,
        tokenizer_file=save_bert_like(folder / "given.json"),
    )
    return load_checkpoint(folder).special_tokens


ENCODER = {"vocabulary_size": VOCABULARY_SIZE, "labels": ("x", "y")}


def test_an_encoders_checkpoint_records_them(tmp_path: Path) -> None:
    """Derived from the tokenizer where nothing is said, and as given where something is: nothing at all, too."""
    assert save(tmp_path / "a", "gru_encoder", ENCODER).surround == Surround(before=(CLS,), after=(SEP,))
    given = Surround(after=(SEP,))
    assert save(tmp_path / "b", "gru_encoder", ENCODER, SpecialTokens(surround=given)).surround == given
    assert save(tmp_path / "c", "gru_encoder", ENCODER, SpecialTokens(surround=Surround())).surround == Surround()


def test_a_model_that_goes_on_with_a_text_has_none(tmp_path: Path) -> None:
    """A prompt has its start token alone; asking for more is refused."""
    assert save(tmp_path, "gru", {"vocabulary_size": VOCABULARY_SIZE}).surround is None
    with pytest.raises(ConfigError, match=r"special_tokens\.surround: .* leave it out"):
        save(tmp_path, "gru", {"vocabulary_size": VOCABULARY_SIZE}, SpecialTokens(surround=Surround(before=(CLS,))))


def test_a_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    """A tokenizer of another model puts an id around texts that this one has no vector for."""
    with pytest.raises(ConfigError, match=r"special_tokens\.surround: id 3 .*0 to 2"):
        save(tmp_path, "gru_encoder", {**ENCODER, "vocabulary_size": 3})
