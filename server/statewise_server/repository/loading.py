"""Steps of loading a bundle: opened and certified, then in memory and running."""

from __future__ import annotations

from pathlib import Path

from statewise.bundles.certificate import check_certificate
from statewise.bundles.reader import Bundle, open_bundle
from statewise.rules.text import load_tokenizer
from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.whole_sequences.predictor import Predictor
from statewise_server.repository.variants import choose_variant
from statewise_server.runtime.ort.providers import available_devices, why_not


def open_certified(folder: Path, requested: str | None) -> tuple[Bundle, str, str]:
    """Open a bundle, every byte checked; return it, the variant for this machine and why that one.

    Raises BundleError where a file is not the one written, or no certificate speaks for the variant.
    """
    bundle = open_bundle(folder)
    variant, reason = choose_variant(bundle.manifest, requested, available_devices(), why_not)
    check_certificate(bundle, variant)
    return bundle, variant, reason


def load_parts(bundle: Bundle, variant: str, settings: EngineSettings) -> tuple[Engine | None, Predictor]:
    """Load a variant: a running engine where the model generates, and a predictor, whose graphs wait for their use.

    Raises BundleError where ONNX Runtime refuses the variant, or its state needs more memory than it may use.
    """
    if bundle.manifest.model.generates:
        engine = Engine.load(bundle, variant, settings)
        engine.start()
        return engine, Predictor(bundle, variant, settings, engine.tokenizer)
    file = bundle.manifest.tokenizer
    predictor = Predictor(bundle, variant, settings, load_tokenizer(bundle.path(file)) if file else None)
    predictor.batcher("predict")
    return None, predictor
