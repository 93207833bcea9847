"""Labelled examples as arrays: the held-out split, names of labels, tokens of texts, and a tag for each token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import Surround
from statewise.errors import ConfigError
from statewise.model.spec import RealInput, TokenInput
from statewise.plugins import DataSpec
from statewise_training.config import LabelledData, TrainConfig
from statewise_training.data.chunks import Items
from statewise_training.data.labelled.reading import Example, read_labelled
from statewise_training.data.labelled.sequences import LabelledSequences
from statewise_training.data.standardization import Standardization
from statewise_training.data.tokenizers import TextEncoder, make_encoder
from statewise_training.data.unknown import notes_on


@dataclass(frozen=True)
class Side:
    """Training part, or held-out part."""

    documents: list[Items]
    sequences: LabelledSequences


@dataclass(frozen=True)
class LabelledParts:
    """The labelled data of a run."""

    train: Side
    held_out: Side
    spec: DataSpec
    encoder: TextEncoder | None
    standardization: Standardization | None
    notes: tuple[str, ...]


def prepare_labelled(config: TrainConfig, data: LabelledData) -> LabelledParts:
    """Read and prepare labelled data. Raises ConfigError naming the unusable part."""
    train, held_out = _split(read_labelled(data), data)
    labels = None if data.target == "value" else _label_names([*train, *held_out], data)
    if isinstance(train[0].items, str):
        # Fitted to the training part alone: the held-out text must stay unseen.
        encoder: TextEncoder | None = make_encoder(config.text_tokenizer, [example.items for example in train])
        standardization = None
    else:
        encoder = None
        standardization = _standardization(train, config, data)
    maker = _SideMaker(config, data, labels, encoder, standardization)
    sides = maker.make(train), maker.make(held_out)
    notes: tuple[str, ...] = ()
    if encoder is not None:
        texts = ([example.items for example in part] for part in (train, held_out))
        notes = notes_on(encoder, *((text, side.documents) for text, side in zip(texts, sides, strict=True)))
    return LabelledParts(*sides, _data_spec(sides[0], data, labels, encoder), encoder, standardization, notes)


def _split(examples: Sequence[Example], data: LabelledData) -> tuple[list[Example], list[Example]]:
    """Return training and held-out examples; holds out about the same share of each label, never all of one."""
    rng = np.random.default_rng(data.split_seed)
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.target if data.target == "label" else "", []).append(index)
    chosen: list[int] = []
    owed = 0.0
    for name in sorted(groups):
        owed += data.held_out * len(groups[name])
        taken = min(int(owed), len(groups[name]) - 1)
        owed -= taken
        chosen += rng.permutation(groups[name])[:taken].tolist()
    if not chosen:
        raise ConfigError(
            f"data.held_out: {data.held_out} of {len(examples)} sequences leaves none held out; change it or add data"
        )
    # Shuffled: the contrastive loss needs several labels in a batch, and files are often sorted by label.
    others = set(range(len(examples))) - set(chosen)
    return [examples[index] for index in sorted(others)], [examples[index] for index in rng.permutation(chosen)]


def _label_names(examples: Sequence[Example], data: LabelledData) -> tuple[str, ...]:
    """Return every label, sorted; numerically if all are numbers."""
    if data.target == "label":
        names = {example.target for example in examples}
    else:
        names = {span.label for example in examples for span in example.target}
        if any(sum(span.end - span.start for span in example.target) < len(example.items) for example in examples):
            names.add(data.outside)
    if len(names) < 2:
        raise ConfigError(
            f"data.target_field: there is but one label, {', '.join(names)!r}; a model learns to tell two or more apart"
        )
    are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int if are_numbers else None))


def _standardization(train: Sequence[Example], config: TrainConfig, data: LabelledData) -> Standardization | None:
    if config.tokenizer is not None:
        raise ConfigError("tokenizer: the data holds vectors and no text; remove this section")
    return Standardization.of([example.items for example in train]) if data.standardize else None


def _data_spec(side: Side, data: LabelledData, labels: tuple[str, ...] | None, encoder: TextEncoder | None) -> DataSpec:
    if encoder is not None:
        items: TokenInput | RealInput = TokenInput(vocabulary_size=encoder.vocabulary_size)
    else:
        items = RealInput(features=side.documents[0].shape[1])
    if labels is None:
        return DataSpec(items, value_size=side.sequences.targets.shape[1])
    return DataSpec(items, labels=labels, labels_per="item" if data.target == "tags" else "sequence")


class _SideMaker:
    """Converts examples to arrays, the same way on both sides of the split."""

    def __init__(
        self,
        config: TrainConfig,
        data: LabelledData,
        labels: tuple[str, ...] | None,
        encoder: TextEncoder | None,
        standardization: Standardization | None,
    ) -> None:
        self._length = config.trainer.sequence_length
        self._data = data
        self._indices = {name: index for index, name in enumerate(labels or ())}
        self._encoder = encoder
        self._surround = encoder.surround if encoder else Surround()
        self._standardization = standardization

    def make(self, examples: Sequence[Example]) -> Side:
        if self._data.target == "tags":
            items, tags = zip(*map(self._tagged, examples), strict=True)
            sequences = LabelledSequences(items, tags, piece_length=self._length, surround=self._surround)
            return Side(list(items), sequences)
        documents = [self._whole(example) for example in examples]
        targets = self._targets(example.target for example in examples)
        places = [example.place for example in examples]
        return Side(documents, LabelledSequences(documents, targets, places, surround=self._surround))

    def _targets(self, targets: Iterable[Any]) -> NDArray[Any]:
        if self._data.target == "value":
            return np.stack(list(targets))
        return np.array([self._indices[name] for name in targets], np.int64)

    def _whole(self, example: Example) -> Items:
        items = self._vectors(example.items) if self._encoder is None else self._encoder.encode(example.items)
        if not len(items):
            raise ConfigError(f"{example.place}: the tokenizer makes no token of this text; leave it out")
        return items[: self._own_length()]

    def _own_length(self) -> int | None:
        """Return the maximum sequence length that leaves room in `truncate_to` for the tokens around it."""
        limit, added = self._data.truncate_to, self._surround.num_tokens
        if limit is not None and limit <= added:
            raise ConfigError(
                f"data.truncate_to: {limit} items leave no room beside the {added} special tokens around every text; "
                "raise it"
            )
        return limit if limit is None else limit - added

    def _tagged(self, example: Example) -> tuple[Items, NDArray[np.int64]]:
        labels = np.full(len(example.items), self._indices.get(self._data.outside, 0), np.int64)
        for span in example.target:
            labels[span.start : span.end] = self._indices[span.label]
        if self._encoder is None:
            return self._vectors(example.items), labels
        ids, ends = self._encoder.encode_with_ends(example.items)
        # The last character decides: a byte-pair token often begins with the space before its word.
        return ids, labels[(ends - 1).clip(min=0)]

    def _vectors(self, items: NDArray[np.float32]) -> NDArray[np.float32]:
        return items if self._standardization is None else self._standardization.apply(items)
