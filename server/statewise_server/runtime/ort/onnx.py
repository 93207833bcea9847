"""The one place that imports ONNX Runtime."""

import os

# Without this, importing ONNX Runtime's Linux wheels writes a device id into the user's cache folder and sends
# telemetry.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["onnxruntime"]
