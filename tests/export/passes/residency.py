"""Where the values of a graph lie when ONNX Runtime runs it on CUDA: shapes on the host, all else on the device.

After ONNX Runtime's fallback_cpu_capability.cc, and the memory types that its CUDA kernels register.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

_MADE_ON_HOST = {"Shape", "Size"}

_READ_ON_HOST = {
    "Clip": {1, 2},
    "ConstantOfShape": {0},
    "Expand": {1},
    "GroupQueryAttention": {6},
    "GRU": {4},
    "LSTM": {4},
    "Pad": {1, 2, 3},
    "RNN": {4},
    "Range": {0, 1, 2},
    "ReduceMax": {1},
    "ReduceMean": {1},
    "ReduceSum": {1},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "TopK": {1},
    "Unsqueeze": {1},
}
"""Indices of the inputs that a CUDA kernel reads on the host."""


def crossings(nodes: Iterable[onnx.NodeProto], constants: Iterable[str]) -> list[str]:
    """Nodes for which ONNX Runtime must copy between host and device; `constants` lie wherever they are read."""
    anywhere, on_host, found = {"", *constants}, set[str](), []
    for node in nodes:
        if node.op_type == "Constant":
            anywhere.update(node.output)
            continue
        host_slots = _READ_ON_HOST.get(node.op_type, set())
        shapes = {name for index, name in enumerate(node.input) if index in host_slots} - anywhere
        data = {name for index, name in enumerate(node.input) if index not in host_slots} - anywhere
        if node.op_type in _MADE_ON_HOST or (data and data <= on_host):
            on_host.update(node.output)
        elif data & on_host or shapes - on_host:
            found.append(f"{node.op_type}({', '.join(node.input)})")
    return found
