"""A real repository and a real server in this process, for tests of services and clients."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from statewise.bundles.manifest import SpecialTokens
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_server.app import Application
from statewise_server.config import ServerSettings
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.data.tokenizers import byte_level
from tests.small_bundles import write_bundle
from tests.small_encoders import write_sums

VOCABULARY_SIZE = 258


@cache
def model_repository() -> Path:
    """Make a repository, once for all tests.

    Its models: `text` (bytes, start and end token), `plain` (ids only), `sum` (two real numbers), `sums` (ids to a
    label, not a generating model), and `broken`, which has a file of the wrong content.
    """
    folder = Path(tempfile.mkdtemp())
    repository = folder / "models"
    repository.mkdir()
    tokenizer_file = folder / "tokenizer.json"
    byte_level().save(str(tokenizer_file))
    _export(folder, "text", SpecialTokens(start=0, end=1), tokenizer_file)
    _export(folder, "plain", SpecialTokens(), None)
    write_bundle(repository, "sum")
    write_sums(repository)
    broken = write_bundle(repository, "broken")
    (broken / "step.cpu-float32.onnx").write_bytes(b"damaged")
    return repository


def _export(folder: Path, name: str, special_tokens: SpecialTokens, tokenizer_file: Path | None) -> None:
    torch.manual_seed(1)
    plugin = load_plugin("gru")
    config = plugin.config_class(vocabulary_size=VOCABULARY_SIZE, hidden_size=16)
    save_checkpoint(
        folder / name,
        name=name,
        plugin_name="gru",
        config=config,
        module=plugin.build(config),
        special_tokens=special_tokens,
        tokenizer_file=tokenizer_file,
    )
    exported = export_checkpoint(load_checkpoint(folder / name), folder / "models")
    assert exported.folder is not None, exported.certificates


@contextmanager
def running_server(**settings: Any) -> Iterator[Application]:
    """Serve the repository at a free port, from an event loop in a thread of its own."""
    given = {"models": model_repository(), "port": 0} | settings
    given["engine"] = {"intra_op_threads": 1, "state_memory": "64MB"} | given.get("engine", {})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(action: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(action, loop).result(timeout=60)

    application = do(_started(ServerSettings(**given)))
    try:
        yield application
    finally:
        do(application.stop(grace=0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _started(settings: ServerSettings) -> Application:
    application = Application(settings)
    await application.start()
    await application.load()
    return application
