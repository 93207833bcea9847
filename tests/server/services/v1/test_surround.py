"""Tokens that a tokenizer puts around a text, as [CLS] and [SEP]: what an encoder receives of text and of ids."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.client import Client
from statewise.errors import InvalidRequestError
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_server.app import Application
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.bert_like import CLS, SEP, VOCABULARY_SIZE, ids_of, save_bert_like
from tests.serving import running_server

TEXT = "A fine film"
IDS = ids_of("a", "fine", "film")
LONGEST = 12


def checkpoint_of(plugin_name: str, **settings: Any) -> Checkpoint:
    """A model with random weights that was saved with the tokenizer alone, as a converted one is."""
    plugin = load_plugin(plugin_name)
    config = plugin.config_class.model_validate({"hidden_size": 16, "num_layers": 1, **settings})
    torch.manual_seed(3)
    folder = Path(tempfile.mkdtemp())
    save_checkpoint(
        folder,
        name=plugin_name,
        plugin_name=plugin_name,
        config=config,
        module=plugin.build(config),
        tokenizer_file=save_bert_like(folder / "given.json"),
    )
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """An embedder, a tagger and an encoder-decoder, which read texts whole, and a model that continues them."""
    repository = tmp_path_factory.mktemp("models")
    encoder = {"vocabulary_size": VOCABULARY_SIZE, "max_positions": LONGEST}
    embedder = {"num_heads": 2, "head": "embedding", "pooling": "first", "vector_size": 8}
    for checkpoint in (
        checkpoint_of("transformer_encoder", **encoder, **embedder),
        checkpoint_of("gru_encoder", **encoder, labels=("x", "y"), labels_per="item"),
        checkpoint_of(
            "gru_encoder_decoder",
            vocabulary_size=VOCABULARY_SIZE,
            source_vocabulary_size=VOCABULARY_SIZE,
            max_source_positions=LONGEST,
        ),
        checkpoint_of("gru", vocabulary_size=VOCABULARY_SIZE),
    ):
        assert export_checkpoint(checkpoint, repository, inspect=checkpoint.name == "transformer_encoder").folder
    with running_server(models=repository) as application:
        yield application


@pytest.fixture(scope="module")
def client(server: Application) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def test_a_text_is_embedded_between_its_special_tokens(client: Client) -> None:
    """A text gives, bit for bit, the embedding of [CLS] its ids [SEP]; ids are read as the client gives them."""
    (text,) = client.predict("transformer_encoder", [TEXT])
    whole, bare = client.predict("transformer_encoder", [[CLS, *IDS, SEP], IDS])

    assert text.embedding is not None
    np.testing.assert_array_equal(text.embedding, whole.embedding)
    assert np.abs(text.embedding - bare.embedding).max() > 0.01


def test_tags_are_of_the_text_alone(client: Client) -> None:
    """Each word has a tag with its place, that of the whole sequence; the special tokens have none."""
    (text,) = client.predict("gru_encoder", [TEXT])
    (whole,) = client.predict("gru_encoder", [[CLS, *IDS, SEP]])

    assert text.tags is not None
    assert whole.tags is not None
    assert [(tag.start, tag.end) for tag in text.tags] == [(0, 1), (2, 6), (7, 11)]
    expected = [tag.probability for tag in whole.tags]
    assert [tag.probability for tag in text.tags] == expected[1:-1]
    assert len(expected) == len(IDS) + 2


def test_special_tokens_count_towards_the_longest_text(client: Client) -> None:
    """Ten words fill twelve positions; with eleven the message names the two tokens that are added."""
    client.predict("transformer_encoder", [" ".join(["film"] * (LONGEST - 2))])

    with pytest.raises(
        InvalidRequestError,
        match=r"inputs\[0\]: has 13 items, 2 special tokens around the text included; at most 12",
    ):
        client.predict("transformer_encoder", [" ".join(["film"] * (LONGEST - 1))])


def test_a_text_without_a_token_is_refused(client: Client) -> None:
    """Special tokens alone are no text."""
    with pytest.raises(InvalidRequestError, match=r"inputs\[0\]: is empty"):
        client.predict("transformer_encoder", ["  "])


def test_inspection_names_the_special_tokens(client: Client) -> None:
    """The items shown are those that the model has read."""
    shown = client.inspect("transformer_encoder", TEXT)

    assert list(shown.items) == ["[CLS]", "a", "fine", "film", "[SEP]"]


def test_a_source_stands_between_its_special_tokens(client: Client) -> None:
    """An encoder-decoder gives the same for a text as for [CLS] its ids [SEP], and counts all of them."""
    options: Any = {"prompt": [CLS], "max_tokens": 5, "logprobs": 0}
    text = client.generate("gru_encoder_decoder", source=TEXT, **options)
    whole = client.generate("gru_encoder_decoder", source=[CLS, *IDS, SEP], **options)

    assert text.usage.source_tokens == whole.usage.source_tokens == len(IDS) + 2
    assert text.log_probabilities == whole.log_probabilities


def test_a_long_source_names_its_special_tokens(client: Client) -> None:
    """The message of a source that is too long counts the tokens that are added, and says so."""
    with pytest.raises(InvalidRequestError, match=r"13 items, 2 special tokens around the text included"):
        client.generate("gru_encoder_decoder", source=" ".join(["film"] * 11), prompt=[CLS], max_tokens=1)


def test_prompts_and_scores_have_no_special_tokens_around_them(client: Client, server: Application) -> None:
    """A model that generates goes on with a text, so nothing may end it: Generate and Score read its ids alone."""
    (score,) = client.score("gru", [TEXT])
    answer = client.generate("gru", TEXT, max_tokens=1)

    assert list(score.tokens) == IDS
    assert answer.usage.prompt_tokens == len(IDS)
