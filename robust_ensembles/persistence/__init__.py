"""Saving and loading of fitted ensembles without pickle, and export to ONNX.

``clf.save(path)`` writes a safetensors file; `load` reads it, in another process or on another
machine, without running code from the file.
"""

from .files import load, save
from .onnx import export_onnx

__all__ = ["export_onnx", "load", "save"]
