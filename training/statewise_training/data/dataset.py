"""Data of a run, ready for training: split, encoded or standardised, cut into chunks, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import Surround
from statewise.errors import ConfigError
from statewise.model.spec import RealInput, TokenInput
from statewise.plugins import DataSpec, item_size
from statewise_training.config import LabelledData, PairsData, SeriesData, TrainConfig
from statewise_training.data.chunks import Chunks, Document, Items, split
from statewise_training.data.corpus import read_series, read_texts
from statewise_training.data.labelled.prepare import prepare_labelled
from statewise_training.data.labelled.sequences import LabelledSequences
from statewise_training.data.pairs.batches import Pairs
from statewise_training.data.pairs.reading import Pair, read_pairs, split_pairs
from statewise_training.data.standardization import Standardization
from statewise_training.data.tokenizers import TextEncoder, make_encoder
from statewise_training.data.unknown import notes_on


@dataclass(frozen=True)
class Dataset:
    """Training and held-out data of one run."""

    train: Chunks | Pairs | LabelledSequences
    held_out: Chunks | Pairs | LabelledSequences
    train_documents: list[Items]
    """Documents, each with its special tokens, if any."""
    held_out_documents: list[Items]
    spec: DataSpec
    sha256: str
    """Hash of all items; detects changed data when a run is resumed."""
    encoder: TextEncoder | None = None
    held_out_characters: int | None = None
    """Number of characters in the held-out text, without special tokens."""
    standardization: Standardization | None = None
    notes: tuple[str, ...] = ()
    """Notes for the user, such as the share of text unknown to the tokenizer."""

    @property
    def is_labelled(self) -> bool:
        """Whether the data has labels or values to predict, rather than the next item."""
        return isinstance(self.train, LabelledSequences)

    @property
    def item_size(self) -> int:
        """Vocabulary size, or numbers per item."""
        (size,) = item_size(self.spec.input).values()
        return size


def prepare(config: TrainConfig) -> Dataset:
    """Read and prepare the data of a run. Raises ConfigError naming the unusable part."""
    if isinstance(config.data, SeriesData):
        return _prepare_series(config, config.data)
    if isinstance(config.data, LabelledData):
        return _prepare_labelled(config, config.data)
    if isinstance(config.data, PairsData):
        return _prepare_pairs(config, config.data)
    return _prepare_text(config)


def _prepare_text(config: TrainConfig) -> Dataset:
    assert not isinstance(config.data, SeriesData | PairsData | LabelledData)
    train, held_out = split(read_texts(config.data), config.data.held_out, config.data.split_seed)
    # Fitted to the training part alone: the held-out text must stay unseen.
    encoder = make_encoder(config.text_tokenizer, [document.body for document in train])
    encoded = [[_encode(document, encoder) for document in part] for part in (train, held_out)]
    texts = [[document.body for document in part] for part in (train, held_out)]
    return _dataset(
        config,
        *encoded,
        spec=DataSpec(TokenInput(vocabulary_size=encoder.vocabulary_size)),
        encoder=encoder,
        held_out_characters=sum(len(document.body) for document in held_out),
        notes=notes_on(encoder, *zip(texts, encoded, strict=True)),
    )


def _encode(document: Document[str], encoder: TextEncoder) -> Items:
    special = encoder.special_tokens
    start = [special.start] if document.has_start and special.start is not None else []
    end = [special.end] if document.has_end and special.end is not None else []
    return np.concatenate([np.array(start, np.int32), encoder.encode(document.body), np.array(end, np.int32)])


def _prepare_series(config: TrainConfig, data: SeriesData) -> Dataset:
    train, held_out = split(read_series(data), data.held_out, data.split_seed)
    bodies = [document.body for document in train], [document.body for document in held_out]
    standardization = Standardization.of(bodies[0]) if data.standardize else None
    if standardization:
        bodies = tuple([standardization.apply(body) for body in part] for part in bodies)
    spec = DataSpec(RealInput(features=bodies[0][0].shape[1]))
    return _dataset(config, *bodies, spec=spec, standardization=standardization)


def _prepare_labelled(config: TrainConfig, data: LabelledData) -> Dataset:
    parts = prepare_labelled(config, data)
    arrays = [array for side in (parts.train, parts.held_out) for array in (*side.documents, side.sequences.targets)]
    return Dataset(
        parts.train.sequences,
        parts.held_out.sequences,
        parts.train.documents,
        parts.held_out.documents,
        spec=parts.spec,
        sha256=_fingerprint([*arrays, *_around(parts.encoder)]),
        encoder=parts.encoder,
        standardization=parts.standardization,
        notes=parts.notes,
    )


def _prepare_pairs(config: TrainConfig, data: PairsData) -> Dataset:
    train, held_out = split_pairs(read_pairs(data), data.held_out, data.split_seed)
    encoder = make_encoder(config.text_tokenizer, _texts(train))
    if encoder.special_tokens.start is None or encoder.special_tokens.end is None:
        raise ConfigError("tokenizer: pairs need a token before and behind every target; name both as start and end")
    sides = [_encode_pairs(pairs, encoder) for pairs in (train, held_out)]
    texts = [_texts(pairs) for pairs in (train, held_out)]
    ids = [[*side.documents, *(side.sources if isinstance(train[0].source, str) else ())] for side in sides]
    tokens, source = TokenInput(vocabulary_size=encoder.vocabulary_size), train[0].source
    return Dataset(
        *sides,
        train_documents=sides[0].documents,
        held_out_documents=sides[1].documents,
        spec=DataSpec(tokens, source=tokens if isinstance(source, str) else RealInput(features=source.shape[1])),
        sha256=_fingerprint([*sides[0].documents, *sides[0].sources, *sides[1].documents, *sides[1].sources]),
        encoder=encoder,
        held_out_characters=sum(len(pair.target) for pair in held_out),
        notes=notes_on(encoder, *zip(texts, ids, strict=True)),
    )


def _texts(pairs: Sequence[Pair]) -> list[str]:
    """Texts of all targets, then of all sources that are texts."""
    return [*(pair.target for pair in pairs), *(pair.source for pair in pairs if isinstance(pair.source, str))]


def _encode_pairs(pairs: Sequence[Pair], encoder: TextEncoder) -> Pairs:
    targets = [_encode(Document(pair.target), encoder) for pair in pairs]
    sources = [
        encoder.encode_surrounded(pair.source) if isinstance(pair.source, str) else pair.source for pair in pairs
    ]
    has_texts = isinstance(pairs[0].source, str)
    note = ", with its special tokens," if has_texts and encoder.surround.num_tokens else ""
    return Pairs(targets, sources, [pair.place for pair in pairs], note)


def _around(encoder: TextEncoder | None) -> list[NDArray[np.int32]]:
    """Special tokens around every text, for the data's fingerprint; empty if there are none."""
    surround = encoder.surround if encoder else Surround()
    return [np.array(side, np.int32) for side in (surround.before, surround.after) if surround.num_tokens]


def _dataset(config: TrainConfig, train: list[Items], held_out: list[Items], **fields: object) -> Dataset:
    length = config.trainer.sequence_length
    chunks = Chunks(train, length), Chunks(held_out, length)
    if not all(map(len, chunks)):
        raise ConfigError("data.held_out: one side of the split has no item to predict; change it or add data")
    return Dataset(*chunks, train, held_out, sha256=_fingerprint([*train, *held_out]), **fields)


def _fingerprint(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{tuple(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
