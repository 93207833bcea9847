from __future__ import annotations

from pathlib import Path

import pytest

from statewise.errors import ConfigError
from statewise_training.config import BPETokenizer, TrainConfig
from statewise_training.config_file import load_config

MINIMAL = "name: m\nplugin: gru\n"
EXAMPLES = Path(__file__).parents[2] / "examples" / "configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_overrides_are_yaml_and_make_missing_sections(file: Path) -> None:
    """A value given with --set is read as YAML, and the sections on its way come to exist."""
    config = load_config(
        file, ["trainer.max_epochs=5", "optimizer.betas=[0.8, 0.9]", "tokenizer.kind=bpe", "model.hidden_size=7"]
    )

    assert (config.trainer.max_epochs, config.optimizer.betas) == (5, (0.8, 0.9))
    assert BPETokenizer(kind="bpe") == config.text_tokenizer
    assert config.model == {"hidden_size": 7}


def test_later_overrides_win_and_output_wins_over_the_file(file: Path) -> None:
    """Of two overrides of one key the later holds, and --output holds against `output` in the file."""
    config = load_config(file, ["trainer.seed=1", "trainer.seed=2", "output=a"], Path("b"))

    assert (2, Path("b")) == (config.trainer.seed, config.folder)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid(example: Path) -> None:
    """The configurations that are shipped can be read."""
    assert example.stem == load_config(example).name


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.learning_rate=-1", ["optimizer.learning_rate", "greater than 0", "-1"]),
        ("optimizer.lr=1", ["optimizer.lr", "unknown key"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch", "did you mean max_epochs?"]),
        ("data.kind=cvs", ["data.kind", "'series'", "cvs"]),
        ("data.held_out=0.1", ["data.kind", "required"]),
        ("tokenizer={kind: bpe, vocabulary_size: 3}", ["tokenizer.vocabulary_size: should be", "258", "got 3"]),
        ("data={kind: text}", ["data.files: required"]),
        ("data={kind: text, files: []}", ["data.files"]),
        ("name=../x", ["name: ", "'../x'"]),
        ("trainer.precision=half", ["trainer.precision", "half"]),
        ("trainer=3", ["trainer: ", "got 3"]),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_the_remedy(file: Path, override: str, parts: list[str]) -> None:
    """The message has the dotted key as the file spells it, the value, what is allowed, and where to correct it."""
    text = message(file, override)

    for part in [*parts, str(file), "--set"]:
        assert part in text


@pytest.mark.parametrize("override", ["trainer.max_epochs", "=3", ".a=3", "name.x=3", "trainer.seed={"])
def test_an_override_that_cannot_be_applied_is_named(file: Path, override: str) -> None:
    """An override without a key, below a plain value, or with a broken value is refused with its own text."""
    assert override in message(file, override)


def test_all_faults_are_told_at_once(file: Path) -> None:
    """Two mistakes make one message with both."""
    text = message(file, "trainer.seed=x", "schedule.kind=step")

    assert "2 faults" in text
    assert "trainer.seed" in text
    assert "schedule.kind" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [1\nb: 2", "line 2"),
        (b"name: a\nname: b", "'name' comes twice"),
        (b"", "found nothing"),
        (b"- a", "found a list"),
        (b"\xff\xfe\x00", "invalid YAML"),
        (b"a: *x", "invalid YAML at line 1"),
        (b"[" * 5000, "invalid YAML"),
        (b"? [a, b]\n: c", "invalid YAML"),
        (b"1: 2", "key: value"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(file: Path, content: bytes, part: str) -> None:
    """Broken YAML is told with its place; a key that comes twice is not silently the last."""
    file.write_bytes(content)

    assert part in message(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere, or to a folder, is in the message."""
    assert str(tmp_path / "no.yaml") in message(tmp_path / "no.yaml")
    assert str(tmp_path) in message(tmp_path)


def test_a_series_takes_no_tokenizer(file: Path) -> None:
    """A tokenizer section beside a series is refused, not ignored."""
    text = message(file, "data={kind: series, files: a.csv}", "tokenizer.kind=bytes")

    assert "tokenizer" in text


def test_a_config_survives_being_written_and_read(file: Path, tmp_path: Path) -> None:
    """What a run records in config.yaml gives the same configuration again."""
    import yaml

    config = load_config(file, ["data={kind: series, files: a.csv}", "initialize_from.file=w.safetensors"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(config.model_dump(mode="json")))

    assert config == load_config(copy)
    assert isinstance(config, TrainConfig)
