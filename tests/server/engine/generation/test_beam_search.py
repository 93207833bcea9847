"""Which answers a beam search finds: all of them where it follows all beginnings, and those of transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers

from statewise.rules.sampling import GREEDY, log_softmax
from statewise_server.engine import Engine, GenerationRequest
from statewise_server.engine.queue_channel import run_all
from statewise_server.engine.request import BeamParams, Hypothesis
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.checkpoints.hugging_face.importer import import_checkpoint
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import draft_of, make_checkpoint, start_engine

LENGTH = 4
VOCABULARY = 4
END = 1
PROMPT = np.array([2, 3, 2])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, ReferenceDecoder]]:
    """A model of four tokens, with a row for each of its answers."""
    options = {"plugin": "gru", "vocabulary_size": VOCABULARY, "hidden_size": 12, "num_layers": 1}
    checkpoint = make_checkpoint("tiny", tmp_path_factory.mktemp("tiny") / "tiny", options=options)
    with torch.no_grad():
        for parameter in checkpoint.module.parameters():
            parameter.mul_(3)
    engine = start_engine(draft_of(checkpoint), max_rows=256, max_beams=256)
    yield engine, ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))
    engine.close()


def search(engine: Engine, prompt: Any, num_beams: int, **options: Any) -> list[Hypothesis]:
    """What a beam search finds, as many hypotheses as beams unless told otherwise."""
    names = ("length_penalty", "early_stopping", "num_hypotheses")
    params = {"num_hypotheses": num_beams} | {name: options.pop(name) for name in names if name in options}
    request = GenerationRequest(prompt, GREEDY, **options, beam_search=BeamParams(num_beams, **params))
    (output,) = run_all(engine, [request])
    assert output.error is None
    return output.hypotheses


def every_answer() -> list[tuple[int, ...]]:
    """Every sequence that ends with the end token, or with the last position."""
    longest = product(range(VOCABULARY), repeat=LENGTH)
    cut = {answer[: answer.index(END) + 1] if END in answer else answer for answer in longest}
    return sorted(cut)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
def test_enough_beams_find_every_answer_in_order(tiny: tuple[Engine, ReferenceDecoder], length_penalty: float) -> None:
    """With a beam for each answer the search is exhaustive: all of them, by the score of the reference's numbers."""
    engine, reference = tiny
    answers = every_answer()
    outputs = reference.outputs([np.concatenate([PROMPT, answer]) for answer in answers])
    log_probabilities = {
        answer: sum(log_softmax(row)[len(PROMPT) - 1 + at, token] for at, token in enumerate(answer))
        for answer, row in zip(answers, outputs, strict=True)
    }
    scores = {answer: log_probabilities[answer] / len(answer) ** length_penalty for answer in answers}

    found = search(
        engine, PROMPT, len(answers), max_tokens=LENGTH, end_tokens=frozenset({END}), length_penalty=length_penalty
    )

    assert [tuple(h.tokens) for h in found] == sorted(answers, key=lambda answer: -scores[answer])
    np.testing.assert_allclose([h.score for h in found], sorted(scores.values(), reverse=True), atol=1e-5)
    np.testing.assert_allclose(
        [h.log_probability for h in found], [log_probabilities[tuple(h.tokens)] for h in found], atol=1e-5
    )
    assert all((h.finish_reason == "stop") == (h.tokens[-1] == END) for h in found)
    assert engine.num_running == 0


def test_more_beams_than_beginnings_find_what_there_is(tiny: tuple[Engine, ReferenceDecoder]) -> None:
    """A search of one step has four answers, whatever was asked for; without an end token none ends early."""
    engine, _ = tiny

    assert len(search(engine, PROMPT, 16, max_tokens=1, end_tokens=frozenset({END}))) == VOCABULARY
    assert {len(h.tokens) for h in search(engine, PROMPT, 8, max_tokens=3)} == {3}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Any]]:
    """A GPT-2 of transformers with random weights that end now and then, and the engine that serves it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder / "theirs")
    import_checkpoint(folder / "theirs", folder / "ours")
    engine = start_engine(draft_of(load_checkpoint(folder / "ours")), max_rows=16)
    yield engine, model
    engine.close()


@pytest.mark.parametrize("num_beams", [2, 5, 16])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 3.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_hypotheses_are_those_of_transformers(
    gpt2: tuple[Engine, Any], num_beams: int, length_penalty: float, early_stopping: bool
) -> None:
    """The same answers with the same scores as `generate`, prompts and lengths differing; some end and some do not."""
    engine, model = gpt2
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    rng = np.random.default_rng(num_beams)
    for length, max_tokens in ((1, 5), (4, 24), (9, 40)):
        prompt = rng.integers(2, 60, length)
        theirs = model.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=max_tokens,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **options,
        )

        found = search(engine, prompt, num_beams, max_tokens=max_tokens, end_tokens=frozenset({END}), **options)

        expected = [_cut(row) for row in theirs.sequences[:, length:].tolist()]
        assert [h.tokens for h in found] == expected
        np.testing.assert_allclose([h.score for h in found], theirs.sequences_scores, rtol=1e-4, atol=1e-4)


def test_several_end_tokens_end_as_those_of_transformers(gpt2: tuple[Engine, Any]) -> None:
    """The more there are, the more continuations are looked through, so that enough beams go on."""
    engine, model = gpt2
    ends = frozenset({END, *range(20, 40)})
    for prompt in np.random.default_rng(1).integers(2, 60, (4, 5)):
        theirs = model.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, 5, dtype=torch.int64),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=0,
        )

        found = search(engine, prompt, 4, max_tokens=20, end_tokens=ends)

        assert [h.tokens for h in found] == [_cut(row, ends) for row in theirs[:, 5:].tolist()]


BART = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Any]]:
    """A BART of transformers with random weights, and the engine that serves it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(transformers.BartConfig(**BART)).eval()
    folder = tmp_path_factory.mktemp("bart")
    model.save_pretrained(folder / "theirs")
    import_checkpoint(folder / "theirs", folder / "ours")
    engine = start_engine(draft_of(load_checkpoint(folder / "ours")), max_rows=8)
    yield engine, model
    engine.close()


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"), [(2, 1.0, False), (4, 0.6, True), (8, 2, False)]
)
def test_hypotheses_of_a_source_are_those_of_transformers(
    bart: tuple[Engine, Any], num_beams: int, length_penalty: float, early_stopping: bool
) -> None:
    """The same answers to the same sources, of one item, an odd number, and as many as the model reads."""
    engine, model = bart
    rng = np.random.default_rng(num_beams)
    for length, max_tokens in ((1, 12), (7, 30), (40, 39)):
        source = rng.integers(3, 60, length)
        theirs = model.generate(
            torch.from_numpy(source)[None],
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=max_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )

        found = search(
            engine,
            np.array([2]),
            num_beams,
            source=source,
            max_tokens=max_tokens,
            end_tokens=frozenset({END}),
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )

        assert [h.tokens for h in found] == [_cut(row) for row in theirs.sequences[:, 1:].tolist()]
        np.testing.assert_allclose([h.score for h in found], theirs.sequences_scores, rtol=1e-4, atol=1e-4)


def _cut(tokens: list[int], ends: frozenset[int] = frozenset({END})) -> list[int]:
    """What transformers pads behind the end token, or behind the longest hypothesis, is left out."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]
