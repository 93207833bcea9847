"""The lock between calls of CUDA and captures."""

from __future__ import annotations

import threading

from statewise_server.runtime.ort.cuda_session import CallLock


def test_nothing_is_captured_while_others_call() -> None:
    """A capture is refused during any call, and granted to one at a time."""
    lock = CallLock()
    granted = []

    with lock.shared(), lock.shared(), lock.alone() as during_calls:
        granted.append(during_calls)
    with lock.alone() as first, lock.alone() as second:
        granted += [first, second]
    with lock.alone() as afterwards:
        granted.append(afterwards)

    assert granted == [False, True, False, True]


def test_calls_wait_for_a_capture() -> None:
    """A call that comes during a capture begins when the capture has ended, whichever way it has."""
    lock = CallLock()
    entered = threading.Event()

    def call() -> None:
        with lock.shared():
            entered.set()

    caller = threading.Thread(target=call)
    try:
        with lock.alone():
            caller.start()
            came_too_early = entered.wait(0.05)
            raise RuntimeError("a capture that fails")
    except RuntimeError:
        caller.join(5)

    assert (came_too_early, entered.is_set()) == (False, True)
