"""Fitted ensembles as files: saved and loaded without pickle, exported to ONNX.

``clf.save(path)`` writes one safetensors file, `load` reads it, in another process, on another
machine, without running any code from the file.
"""

from .files import load, save
from .onnx import export_onnx

__all__ = ["export_onnx", "load", "save"]
