"""Sessions on CUDA: while one thread captures a graph, no other may call CUDA.

ONNX Runtime captures in CUDA's global mode, in which an allocation or a copy by any thread of the process fails (error
900), and spoils the capture. So whoever calls CUDA shares a lock, which a capture has alone. A capture never waits for
it, as a call may be long: a model that is being loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any

from statewise_server.runtime.ort.onnx import onnxruntime


class CallLock:
    """Any number of calls at once, or one capture."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_calls = 0
        self._is_captured = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A call, which waits for a capture to end. No call is made inside a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_captured)
            self._num_calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_calls -= 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """A capture, if nothing else goes on; gives whether it may be."""
        with self._changed:
            is_free = not self._num_calls and not self._is_captured
            self._is_captured |= is_free
        try:
            yield is_free
        finally:
            if is_free:
                with self._changed:
                    self._is_captured = False
                    self._changed.notify_all()


CUDA_CALLS = CallLock()


class CudaBinding(onnxruntime.IOBinding):  # type: ignore[misc] # ONNX Runtime has no types
    """A binding whose inputs from the host are copied to the device when they are bound."""

    def bind_input(self, *arguments: Any, **named: Any) -> None:
        """Forward to ONNX Runtime's session."""
        with CUDA_CALLS.shared():
            super().bind_input(*arguments, **named)


class CudaSession(onnxruntime.InferenceSession):  # type: ignore[misc] # ONNX Runtime has no types
    """A session whose calls wait for captures, and whose captures wait for calls."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        with CUDA_CALLS.shared():
            super().__init__(*arguments, **named)

    def io_binding(self) -> CudaBinding:
        """Forward to ONNX Runtime's session."""
        return CudaBinding(self)

    def run(self, *arguments: Any, **named: Any) -> Any:
        """Forward to ONNX Runtime's session."""
        with CUDA_CALLS.shared():
            return super().run(*arguments, **named)

    def run_with_iobinding(self, *arguments: Any, **named: Any) -> None:
        """Forward to ONNX Runtime's session."""
        with CUDA_CALLS.shared():
            super().run_with_iobinding(*arguments, **named)

    def capture(self, binding: CudaBinding, options: onnxruntime.RunOptions) -> bool:
        """As `run_with_iobinding`, for a run that captures a graph; False where it cannot be now: nothing is run."""
        with CUDA_CALLS.alone() as is_free:
            if is_free:
                super().run_with_iobinding(binding, options)
        return is_free
