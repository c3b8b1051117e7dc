"""Fitted ensembles as files: saved and loaded without pickle, exported to ONNX.

``clf.save(path)`` writes one safetensors file, `load` reads it, in another process, on another
machine, without running any code from the file.
"""

from ._load import load
from ._onnx import export_onnx
from ._save import save

__all__ = ["export_onnx", "load", "save"]
