"""`statewise serve` with a probe: for every file named on stdin, it writes there what lives in the process.

With `--leaking` it is the control of the leak test, a server that keeps a little of every request.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from statewise.cli import main
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.services.v1.generation import GenerationService

KEPT: list[object] = []
"""What the control never lets go."""

KEPT_BYTES = 64 * 1024
"""Of an array for each request, as its logits or its state would be."""

RARELY = 20
"""Of so many requests one leaves a task, a thread and an open file: a process may have a thousand files only."""


def answer_probes() -> None:
    for line in sys.stdin:
        gc.collect()
        types = Counter(type(thing).__name__ for thing in gc.get_objects())
        answer = Path(line.strip())
        partial = answer.with_suffix(".partial")
        found = {"types": types, "blocks": sys.getallocatedblocks(), "heap": live_heap()}
        partial.write_text(json.dumps(found))
        partial.rename(answer)


def live_heap() -> int:
    """KiB that malloc has given out and not got back; Python's own small objects lie elsewhere."""
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    info_type = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = info_type
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd) // 1024


def leak() -> None:
    """Make every request leave something behind."""
    numbers = count()
    make_sequence, generate = Sequence.__init__, GenerationService.Generate

    def keep(self: Sequence, *arguments: Any) -> None:
        KEPT.append((self, np.ones(KEPT_BYTES, np.uint8)))
        make_sequence(self, *arguments)

    async def forget(self: GenerationService, request: Any, context: Any) -> None:
        if not next(numbers) % RARELY:
            KEPT.append(asyncio.create_task(asyncio.Event().wait()))
            KEPT.append(os.open(os.devnull, os.O_RDONLY))
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        await generate(self, request, context)

    Sequence.__init__, GenerationService.Generate = keep, forget  # type: ignore[method-assign]


if __name__ == "__main__":
    threading.Thread(target=answer_probes, daemon=True).start()
    flags = sys.argv[1:]
    if "--leaking" in flags:
        flags.remove("--leaking")
        leak()
    main(["serve", *flags])
