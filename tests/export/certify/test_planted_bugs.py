"""Bugs planted between the graphs and a client: the certificate refuses each, by the name of what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from statewise.bundles.manifest import SpecialTokens
from statewise.bundles.reader import Bundle
from statewise_export.certify.certify import CHECKS, run_checks
from statewise_export.certify.served.manifest import MANIFEST
from statewise_export.certify.served.streams import SERVED
from statewise_export.certify.served.whole import WHOLE_SEQUENCES
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer
from tests.export.certify import engine_bugs as bugs
from tests.export.certify.engine_bugs import Plant
from tests.export.conftest import Statewise
from tests.models import END, checkpoint_of, draft_bundle, draft_of, make_checkpoint


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(draft_bundle("gru-text", "cpu-float32"), "cpu-float32", Tracer(checkpoint_of("gru-text")))


def missed(trial: Trial) -> set[str]:
    """The names of the checks that a trial misses, of those that ask the server."""
    outcomes = run_checks(trial, (MANIFEST, SERVED, WHOLE_SEQUENCES))
    assert len(outcomes) >= 3
    return {outcome.name for outcome in outcomes if not outcome.passed}


def test_a_sound_server_misses_nothing(trial: Trial) -> None:
    """Without a bug every check passes, and all of them belong to each export."""
    assert missed(trial) == set()
    assert {MANIFEST, SERVED, WHOLE_SEQUENCES} <= set(CHECKS)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (bugs.halved_log_probabilities, "served: log-probabilities"),
        (bugs.log_probability_of_the_best, "served: log-probabilities"),
        (bugs.log_probability_of_the_row_before, "served: log-probabilities"),
        (bugs.top_ids_off_by_one, "served: top tokens"),
        (bugs.top_out_of_order, "served: top tokens"),
        (bugs.another_tokens_entry, "served: top tokens"),
        (bugs.no_top, "served: top tokens"),
        (bugs.prefix_of_another_prompt, "served: items behind a reused prefix"),
        (bugs.prefix_too_long_by_one, "served: length of the reused prefix"),
        (bugs.ignored_seed, "served: items by the rules and the seed"),
        (bugs.noise_of_the_next_position, "served: items by the rules and the seed"),
        (bugs.penalties_without_the_output, "served: items by the rules and the seed"),
        (bugs.ignored_top_k, "served: items by the rules and the seed"),
        (bugs.ignored_temperature, "served: items by the rules and the seed"),
        (bugs.moved_row_without_its_state, "served: log-probabilities"),
        (bugs.moved_row_without_its_parameters, "served: items by the rules and the seed"),
        (bugs.row_not_cleared, "served: log-probabilities"),
        (bugs.end_token_ignored, "served: the model's own end"),
        (bugs.end_token_withheld, "served: end tokens"),
        (bugs.wrong_finish_reason, "served: lengths and finish reasons"),
        (bugs.one_item_too_few, "served: lengths and finish reasons"),
        (bugs.stop_strings_ignored, "served: stop strings"),
        (bugs.stop_string_in_the_text, "served: stop strings"),
        (bugs.text_with_more_spaces, "served: text"),
        (bugs.scores_without_the_length, "served: beam search"),
        (bugs.answers_of_other_callers, "served: score"),
        (bugs.padding_in_the_scores, "served: score"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_a_planted_bug_is_named(plant: Plant, check: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate fails, and the check says what a client would have received wrongly."""
    plant(monkeypatch)

    assert check in missed(trial)


@pytest.mark.parametrize("tokens", [SpecialTokens(start=0, end=2), SpecialTokens(start=0), SpecialTokens(end=END)])
def test_other_special_tokens_are_named(tokens: SpecialTokens, trial: Trial) -> None:
    """A manifest whose special tokens are not the checkpoint's is refused; a wrong end is noticed in use, too."""
    manifest = trial.bundle.manifest.model_copy(update={"special_tokens": tokens})
    found = missed(replace(trial, bundle=Bundle(trial.bundle.folder, manifest)))

    assert "manifest = checkpoint" in found
    assert ("served: the model's own end" in found) == (tokens.end != END)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A small encoder that gives one of three labels."""
    options = {"plugin": "gru_encoder", "vocabulary_size": 31, "max_positions": 40, "hidden_size": 16, "num_layers": 1}
    folder = tmp_path_factory.mktemp("labels") / "checkpoint"
    checkpoint = make_checkpoint("labels", folder, options=options | {"labels": ("a", "b", "c")})
    return Trial(draft_of(checkpoint), "cpu-float32", Tracer(checkpoint))


def test_labels_in_another_order_are_named(labels: Trial) -> None:
    """The names are the manifest's, the numbers the graph's: the checkpoint says which belongs to which."""
    manifest = labels.bundle.manifest
    head = manifest.model.head.model_copy(update={"names": ("b", "a", "c")})
    manifest = manifest.model_copy(update={"model": manifest.model.model_copy(update={"head": head})})
    trial = replace(labels, bundle=Bundle(labels.bundle.folder, manifest))

    assert {o.name for o in run_checks(labels, (MANIFEST, WHOLE_SEQUENCES)) if not o.passed} == set()
    assert {o.name for o in run_checks(trial, (MANIFEST, WHOLE_SEQUENCES)) if not o.passed} == {"manifest = checkpoint"}


@pytest.mark.parametrize("plant", [bugs.answers_of_other_callers, bugs.padding_in_the_scores])
def test_labels_of_other_sequences_are_named(plant: Plant, labels: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of another sequence, or of one with an item more, are not what PyTorch says of it."""
    plant(monkeypatch)

    assert {o.name for o in run_checks(labels, (WHOLE_SEQUENCES,)) if not o.passed} == {"served: predict"}


def test_an_engine_that_fails_is_a_missed_check(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer with an error, or without items, is no answer."""
    patched = bugs.change_delta(lambda delta: setattr(delta, "items", []))
    patched(monkeypatch)

    assert missed(trial) == {"served: every request is answered"}


def test_export_refuses_a_planted_bug(
    tmp_path: Path, checkpoint: Path, statewise: Statewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`statewise export` makes no bundle, exits with 1, and its message names the check."""
    bugs.halved_log_probabilities(monkeypatch)
    outcome = statewise("export", checkpoint, "--to", tmp_path / "models")

    assert outcome.code == 1
    assert "served: log-probabilities" in outcome.error
    assert not list(tmp_path.rglob("manifest.json"))
