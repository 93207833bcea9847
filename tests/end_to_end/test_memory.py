"""What a server's resident size is made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from statewise import Client
from statewise.bundles.reader import find_bundle, open_bundle
from tests.end_to_end.processes import serving

ROWS = 256
OVERHEAD_MIB = 200
"""More than the 120 MiB of docs/serve.md: other versions of the libraries have other sizes."""


def test_full_rows_take_the_weights_the_pool_and_a_stated_overhead(repository: Path, tmp_path: Path) -> None:
    """Rows filled to the last position: the pool is paid once, and what comes with it is bounded."""
    bundle = open_bundle(find_bundle(repository, "transformer"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "transformer").symlink_to(bundle.folder.parent, target_is_directory=True)
    spec = bundle.manifest.model
    positions = spec.max_positions or 0
    row_bytes = sum(int(np.prod(s.row_shape(positions))) * np.dtype(s.dtype).itemsize for s in spec.state)
    weights = sum((bundle.folder / file).stat().st_size for file in bundle.manifest.files if file.endswith(".data"))
    pool = ROWS * row_bytes / 2**20

    flags = ("--max-rows", str(ROWS), "--max-waiting", str(ROWS), "--threads", "1", "--prefix-memory", "0")
    with serving(tmp_path / "models", tmp_path, *flags) as server, Client(server.address, timeout=120) as client:

        def fill(row: int) -> int:
            prompt = [row] * (positions - 20)
            return client.generate("transformer", prompt, max_tokens=20, ignore_end_token=True).usage.completion_tokens

        assert fill(5) == 20
        before = server.resident_mib()
        with ThreadPoolExecutor(ROWS) as threads:
            assert set(threads.map(fill, range(ROWS))) == {20}
        after = server.resident_mib()

    assert after <= weights / 2**20 + pool + OVERHEAD_MIB
    assert after - before <= 1.3 * pool + 8, "more than the pool has grown"
