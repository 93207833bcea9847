"""The models that a server serves: the newest good version of each model in a repository folder."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from statewise.bundles.manifest import Manifest
from statewise.bundles.onnx_check import check_graphs
from statewise.bundles.reader import list_models
from statewise.errors import BundleError, InvalidRequestError, NotFoundError, StatewiseError, UnavailableError
from statewise.model.spec import MixtureHead
from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.generation.state_memory import default_state_memory, format_bytes
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.whole_sequences.predictor import Predictor
from statewise_server.repository.loading import load_parts, open_certified
from statewise_server.repository.trial import TrialLimits, try_bundle

logger = logging.getLogger(__name__)

ModelState = Literal["loading", "ready", "refused"]

_LOADED_AT_ONCE = 2


@dataclass(frozen=True)
class ModelEntry:
    """One version of a model, and the state of its loading."""

    name: str
    version: int
    state: ModelState
    reason: str = ""
    """Why it is refused."""
    variant: str | None = None
    manifest: Manifest | None = None
    engine: Engine | None = None
    """Engine that generates; None where the model only reads whole sequences, or is not loaded."""
    predictor: Predictor | None = None
    """Predictor for whole sequences; None where the model is not loaded."""

    @property
    def parts(self) -> tuple[Engine | Predictor, ...]:
        """Loaded parts of the model: engine and predictor."""
        return tuple(part for part in (self.engine, self.predictor) if part is not None)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the rpcs that a loaded model answers."""
        own: tuple[str, ...] = ("Generate",) if self.engine is not None else ()
        if self.manifest is not None and isinstance(self.manifest.model.head, MixtureHead):
            own = (*own, "Forecast")
        return (*own, *(self.predictor.methods if self.predictor is not None else ()))

    def describe(self) -> str:
        """Describe a loaded model's capacity on one line."""
        if self.engine is not None:
            return self.engine.memory.describe()
        return self.predictor.describe() if self.predictor is not None else ""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Repository:
    """Loads the models of a folder and hands out their engines and predictors; safe to use from any thread.

    Each model's newest version is loaded; where that is refused, the next older one, so that a bad export
    takes no model down. A refused model never stops the others.
    """

    def __init__(
        self,
        root: Path,
        settings: EngineSettings,
        variant: str | None = None,
        trial: bool = True,
        limits: TrialLimits | None = None,
    ) -> None:
        self.root = root
        self._settings = settings
        self._variant = variant
        self._trial = trial
        self._limits = limits
        self._shares: dict[str, int] = {}
        """Bytes of state for each model, by device."""
        self._is_sharing = threading.Lock()
        self._versions = list_models(root)
        self._closing = threading.Event()
        self._is_loading = threading.Lock()
        self._lock = threading.Lock()
        newest = [ModelEntry(name, versions[-1], "loading") for name, versions in self._versions.items()]
        self._entries = {(entry.name, entry.version): entry for entry in newest}

    def load_all(self) -> None:
        """Load every model; returns when each is ready or refused, or when the repository is closed."""
        with self._is_loading, ThreadPoolExecutor(_LOADED_AT_ONCE, thread_name_prefix="load") as pool:
            list(pool.map(self._load_model, self._versions))

    def entries(self) -> list[ModelEntry]:
        """Return every version that is loading, ready or refused, by name and version."""
        with self._lock:
            return [entry for _, entry in sorted(self._entries.items())]

    def get(self, name: str, version: int = 0) -> Engine:
        """Return the engine of a model that generates; version 0 is the newest that is ready.

        Raises NotFoundError naming what exists, BundleError where the model was refused, UnavailableError
        while it is loading or the server is stopping, InvalidRequestError for a model that does not generate.
        """
        entry = self._loaded(name, version)
        if entry.engine is None:
            raise InvalidRequestError(f"{name!r} does not generate; use Predict", field="model")
        return entry.engine

    def predictor(self, name: str, version: int = 0) -> Predictor:
        """Return what a model says of whole sequences; raises as `get`, but for every kind of model there is one."""
        predictor = self._loaded(name, version).predictor
        assert predictor is not None
        return predictor

    def _loaded(self, name: str, version: int) -> ModelEntry:
        if self._closing.is_set():
            raise UnavailableError("the server is stopping")
        with self._lock:
            found = [entry for entry in self._entries.values() if entry.name == name]
        if version:
            found = [entry for entry in found if entry.version == version]
        if not found:
            raise NotFoundError(self._what_exists(name, version))
        return _checked(max(found, key=_usefulness))

    def close(self, grace: float) -> None:
        """Let what runs complete within `grace` seconds, free every engine, and end a load under way."""
        self._closing.set()
        with self._lock:
            parts = [part for entry in self._entries.values() for part in entry.parts]
            self._entries = {key: replace(entry, engine=None, predictor=None) for key, entry in self._entries.items()}
        _in_parallel(lambda part: _close_part(part, grace), parts)
        with self._is_loading:  # a load that is under way sees `_closing`, and frees what it has loaded
            pass

    def _settings_on(self, device: str) -> EngineSettings:
        """The settings with a share of the device's memory, which is looked at before any model is loaded there."""
        if self._settings.state_memory is not None:
            return self._settings
        with self._is_sharing:
            if device not in self._shares:
                share = self._shares[device] = default_state_memory(device, len(self._versions))
                logger.info("state memory: %s for each of %d models", format_bytes(share), len(self._versions))
            return self._settings.model_copy(update={"state_memory": self._shares[device]})

    def _load_model(self, name: str) -> None:
        for version in reversed(self._versions[name]):
            if self._load_version(ModelEntry(name, version, "loading")):
                return

    def _load_version(self, entry: ModelEntry) -> bool:
        """Load one version; False where it is refused, so that the next older one is wanted."""
        started = time.monotonic()
        self._record(entry)
        try:
            self._record(self._load(entry))
        except UnavailableError:
            return True  # closing: no older version is wanted either
        except StatewiseError as error:
            self._refuse(entry, str(error))
        except Exception as error:
            # Whatever a bundle provokes, the other models are served.
            logger.exception("model %s: unexpected error while loading", entry)
            self._refuse(entry, f"{type(error).__name__}: {error}")
        else:
            logger.info("model %s: ready after %.1f s", entry, time.monotonic() - started)
            return True
        return False

    def _load(self, entry: ModelEntry) -> ModelEntry:
        self._go_on()
        bundle, variant, reason = open_certified(self.root / entry.name / str(entry.version), self._variant)
        logger.info("model %s: loading variant %s (%s)", entry, variant, reason)
        generates = bundle.manifest.model.generates
        settings = self._settings_on(bundle.variant(variant).device) if generates else self._settings
        if self._trial:
            try_bundle(bundle, variant, settings, self._limits, self._closing)
        else:
            check_graphs(bundle, variant)
        self._go_on()
        engine, predictor = load_parts(bundle, variant, settings)
        ready = replace(
            entry, state="ready", variant=variant, manifest=bundle.manifest, engine=engine, predictor=predictor
        )
        logger.info("model %s: %s", entry, ready.describe())
        return ready

    def _go_on(self) -> None:
        if self._closing.is_set():
            raise UnavailableError("the server is stopping")

    def _record(self, entry: ModelEntry) -> None:
        with self._lock:
            if not self._closing.is_set():
                self._entries[entry.name, entry.version] = entry
                return
        # Loaded too late: close() has taken its list of what is loaded already.
        for part in entry.parts:
            _close_part(part, 0.0)

    def _refuse(self, entry: ModelEntry, reason: str) -> None:
        logger.error("model %s: refused: %s", entry, reason)
        self._record(replace(entry, state="refused", reason=reason))

    def _what_exists(self, name: str, version: int) -> str:
        if name not in self._versions:
            return f"no model {name!r} (models here: {', '.join(self._versions) or 'none'})"
        served = [str(entry.version) for entry in self.entries() if entry.name == name and entry.parts]
        on_disk = version in self._versions[name]
        problem = "is on disk, but not served" if on_disk else "does not exist"
        return f"version {version} of model {name!r} {problem} (served: {', '.join(served) or 'none'})"


def _usefulness(entry: ModelEntry) -> tuple[bool, bool, int]:
    return entry.state == "ready", entry.state == "loading", entry.version


def _checked(entry: ModelEntry) -> ModelEntry:
    if entry.state == "refused":
        raise BundleError(f"model {entry} is refused: {entry.reason}")
    if not entry.parts:
        raise UnavailableError(f"model {entry} is still loading; try again soon")
    return entry


def _close_part(part: Engine | Predictor, grace: float) -> None:
    try:
        part.drain(grace)
    finally:
        part.close()


def _in_parallel(action: Callable[[Engine | Predictor], None], parts: Iterable[Engine | Predictor]) -> None:
    threads = [threading.Thread(target=action, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
