from __future__ import annotations

from pathlib import Path

import pytest

from statewise.errors import ConfigError
from statewise.plugins import load_plugin
from statewise_training.config import BPETokenizer, TrainConfig
from statewise_training.config_file import load_config, validate

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
    """The message has the dotted key as the file spells it, the value, what is allowed, and how to correct it."""
    text = message(file, override)

    for part in [*parts, str(file), "--set"]:
        assert part in text


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.max_epoch=3", "; did you mean trainer.max_epochs?"),
        ("trainer.learning_rate=0.1", "; did you mean optimizer.learning_rate?"),
        ("learning_rate=0.1", "; did you mean optimizer.learning_rate?"),
        ("max_steps=1", "; did you mean trainer.max_steps?"),
        ("optimiser={learning_rate: 1}", "; did you mean optimizer?"),
        ("trainer.quux=1", "; known in trainer: accelerator, "),
        ("quux=1", "; known here: data, "),
        ("data={kind: text, files: a, text_field: b}", "; only data of kind jsonl has it"),
        ("data={kind: text, files: a, standardize: true}", "; only data of kind labelled or series has it"),
        ("data={kind: jsonl, files: a, textfield: b}", "; did you mean data.text_field?"),
        ("tokenizer={kind: bpe, vocab_size: 300}", "; did you mean tokenizer.vocabulary_size?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(file: Path, override: str, part: str) -> None:
    """The nearest key of the section, or the same one of another section, by its full path; else all keys there."""
    text = message(file, override)

    assert "unknown key" in text
    assert part in text


def test_a_section_names_its_own_keys_alone(file: Path) -> None:
    """Where no key is near, those of the section and kind at fault are listed, not those of other kinds."""
    listed = message(file, "data={kind: text, files: a, quux: b}").partition("known in data: ")[2].partition(" (")[0]

    assert listed == "files, held_out, kind, split_seed"


def test_the_remedy_for_an_unknown_key_never_sets_it(file: Path) -> None:
    """A key in the file is to be corrected there; one that --set brought, in the command."""
    assert message(file, "trainer.learning_rate=1").endswith("(correct --set trainer.learning_rate)")
    file.write_text(MINIMAL + "trainer: {learning_rate: 1}\n")
    assert message(file).endswith(f"(correct it in {file})")
    file.write_text(MINIMAL + "trainer: {seed: x}\n")
    assert message(file).endswith(f"(correct it in {file}, or pass --set trainer.seed=VALUE)")


def test_an_unknown_key_of_a_family_is_answered_from_the_whole_schema() -> None:
    """Keys of the section `model` are the plugin's, and one that belongs elsewhere is found there."""
    config_class = load_plugin("gru").config_class

    def refusal(**raw: object) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(config_class, {"vocabulary_size": 9, **raw}, source="run.yaml", prefix="model")
        return str(caught.value)

    assert "model.hidden_sise: unknown key (its value is 3); did you mean model.hidden_size?" in refusal(hidden_sise=3)
    assert "did you mean optimizer.learning_rate?" in refusal(learning_rate=1)
    assert "known in model: " in refusal(quux=1)


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
