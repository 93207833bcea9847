"""State in ONNX Runtime's memory on a device: no library but ONNX Runtime is needed to keep it there and to move it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from onnx import ModelProto, NodeProto, TensorProto, helper

from statewise_server.runtime.ort.cuda_session import CUDA_CALLS
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.state.memory import Array, View, bind, host_view


@dataclass(frozen=True)
class DeviceBuffer:
    """A tensor in ONNX Runtime's memory."""

    value: onnxruntime.OrtValue
    device: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def address(self) -> int:
        """Address of its first byte on the device."""
        return int(self.value.data_ptr())

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> View:
        start, stop, _ = rows.indices(self.shape[0])
        row_bytes = self.nbytes // self.shape[0]
        return View(self.device, self.dtype, (stop - start, *self.shape[1:]), self.address + start * row_bytes)


class DeviceMemory:
    """Memory whose rows move by graphs of one or two operators, bound to their addresses; a Memory.

    On the device `cpu` the very same path runs without a GPU.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._sessions: dict[tuple[str, np.dtype[Any]], onnxruntime.InferenceSession] = {}

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceBuffer:
        # Attention weighs positions behind a row's end with zero, and zero times the NaN of unset memory is NaN.
        with CUDA_CALLS.shared():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), self._device, 0)
        return DeviceBuffer(value, self._device, np.dtype(dtype), tuple(shape))

    def view(self, buffer: DeviceBuffer, rows: slice) -> View:
        return buffer[rows]

    def fill(self, buffer: DeviceBuffer, values: Array) -> None:
        with CUDA_CALLS.shared():
            buffer.value.update_inplace(np.asarray(values, buffer.dtype))

    def copy(self, source: DeviceBuffer, source_rows: slice, target: DeviceBuffer, target_rows: slice) -> None:
        self._run("copy", {"source": source[source_rows]}, target[target_rows])

    def copy_positions(
        self, source: DeviceBuffer, source_row: int, target: DeviceBuffer, target_row: int, count: int
    ) -> None:
        self._write_positions(source[_one(source_row)], target[_one(target_row)], 0, count)

    def read(self, buffer: DeviceBuffer, row: int) -> Array:
        values = np.empty(buffer.shape[1:], buffer.dtype)
        self._run("copy", {"source": buffer[_one(row)]}, _as_row(values))
        return values

    def read_positions(self, buffer: DeviceBuffer, row: int, start: int, stop: int) -> Array:
        heads, _, *rest = buffer.shape[1:]
        values = np.empty((heads, stop - start, *rest), buffer.dtype)
        if stop > start:
            first, end = np.array([start]), np.array([stop])
            inputs = {"source": buffer[_one(row)], "start": host_view(first), "stop": host_view(end)}
            self._run("read_positions", inputs, _as_row(values))
        return values

    def write(self, buffer: DeviceBuffer, row: int, values: Array) -> None:
        values = np.asarray(values, buffer.dtype, order="C")  # ascontiguousarray makes scalars vectors
        self._run("copy", {"source": _as_row(values)}, buffer[_one(row)])

    def write_positions(self, buffer: DeviceBuffer, row: int, start: int, values: Array) -> None:
        values = np.asarray(values, buffer.dtype, order="C")
        self._write_positions(_as_row(values), buffer[_one(row)], start, values.shape[1])

    def _write_positions(self, source: View, target: View, start: int, count: int) -> None:
        if count:
            first, number = np.array([start]), np.array([count])
            inputs = {"source": source, "target": target, "start": host_view(first), "count": host_view(number)}
            self._run("write_positions", inputs, target)

    def _run(self, graph: str, inputs: Mapping[str, View], output: View) -> None:
        session = self._session(graph, output.dtype)
        binding = session.io_binding()
        for name, view in inputs.items():
            bind(binding.bind_input, name, view)
        bind(binding.bind_output, "result", output)
        session.run_with_iobinding(binding)

    def _session(self, graph: str, dtype: np.dtype[Any]) -> onnxruntime.InferenceSession:
        if (graph, dtype) not in self._sessions:
            model = _GRAPHS[graph](helper.np_dtype_to_tensor_dtype(dtype))
            self._sessions[graph, dtype] = create_session(
                model.SerializeToString(), device=self._device, intra_op_threads=1
            )
        return self._sessions[graph, dtype]


def _as_row(array: Array) -> View:
    return host_view(array[None])


def _one(row: int) -> slice:
    return slice(row, row + 1)


def _copy_graph(dtype: int) -> ModelProto:
    return _model([helper.make_node("Identity", ["source"], ["result"])], {"source": dtype}, dtype)


def _read_graph(dtype: int) -> ModelProto:
    nodes = [_axis(), helper.make_node("Slice", ["source", "start", "stop", "axis"], ["result"])]
    return _model(nodes, {"source": dtype, "start": TensorProto.INT64, "stop": TensorProto.INT64}, dtype)


def _write_graph(dtype: int) -> ModelProto:
    """TensorScatter, which leaves alone what it does not write where its target and its result are one place."""
    nodes = [
        _axis(),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Slice", ["source", "zero", "count", "axis"], ["new"]),
        helper.make_node("TensorScatter", ["target", "new", "start"], ["result"], axis=2),
    ]
    numbers = {"start": TensorProto.INT64, "count": TensorProto.INT64}
    return _model(nodes, {"source": dtype, "target": dtype, **numbers}, dtype, opset=24)


_GRAPHS = {"copy": _copy_graph, "read_positions": _read_graph, "write_positions": _write_graph}


def _axis() -> NodeProto:
    return helper.make_node("Constant", [], ["axis"], value_ints=[2])


def _model(nodes: list[NodeProto], inputs: Mapping[str, int], dtype: int, *, opset: int = 21) -> ModelProto:
    infos = [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()]
    result = helper.make_tensor_value_info("result", dtype, None)
    graph = helper.make_graph(nodes, "rows", infos, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
