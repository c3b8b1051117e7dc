"""Export of the deployed rule as an ONNX model."""

from __future__ import annotations

import copy
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._checks import one_of
from .._system import replacing
from ..estimators import BaseEnsembleClassifier

INPUT, OUTPUT = "X", "log_proba"
_INPUT_DTYPES = ("float32", "float64", "uint8")
# sizes of the batches to compare; the model is traced with another one
_TRACED, _COMPARED = 3, (1, 8)


def export_onnx(
    estimator: BaseEnsembleClassifier,
    path: str | os.PathLike[str],
    *,
    input_dtype: str = "float32",
    tolerance: float = 1e-5,
) -> None:
    """Export a fitted ensemble as an ONNX model and compare it with the estimator.

    The model takes ``X`` of shape (n_samples, n_features) if the estimator was given an
    `input_shape`, else ``(n_samples, *input_shape_)``, for any n_samples, and returns
    ``log_proba`` of shape (n_samples, n_classes): logarithms of the members' mean probability, in
    the order of `classes_`, which the model's metadata contain as JSON. For other ways of serving,
    ``torch.export.export(estimator.as_module(), ...)`` takes the same module.

    Parameters
    ----------
    estimator : fitted estimator of this package
        On any device; it stays there.
    path : path-like
        An existing file is replaced atomically.
    input_dtype : {"float32", "float64", "uint8"}, default="float32"
        The dtype of X in the ONNX model; ``"uint8"`` is divided by 255.
    tolerance : float, default=1e-5
        Largest allowed absolute and relative difference between the outputs of onnxruntime on the
        CPU and of the estimator, on random X in the box.

    Raises
    ------
    ImportError
        Without onnx, onnxscript and onnxruntime.
    RuntimeError
        If the outputs differ by more, or torch cannot export the networks (2.6 cannot export
        ResNets); nothing is written.
    """
    check_is_fitted(estimator)
    one_of(input_dtype, _INPUT_DTYPES, "input_dtype")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _need(name)
    module = copy.deepcopy(estimator.as_module()).cpu().eval()
    program = _program(module, _inputs(estimator, _TRACED, input_dtype))
    program.model.metadata_props["classes"] = json.dumps(estimator.classes_.tolist())
    with replacing(path) as beside:
        program.save(beside)
        _compare(estimator, module, beside, input_dtype, tolerance)


def _program(module: nn.Module, X: NDArray[Any]) -> Any:
    """The ONNX program of a module, for any number of samples."""
    try:
        return torch.onnx.export(
            module,
            (torch.from_numpy(X),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n_samples")},),
        )
    except torch.onnx.OnnxExporterError as error:
        raise RuntimeError(
            f"torch {torch.__version__} could not write these networks as ONNX. Newer releases of "
            "torch and onnxscript can write more; what it stumbled over stands above"
        ) from error


def _inputs(estimator: BaseEnsembleClassifier, n: int, dtype: str) -> NDArray[Any]:
    """Random X in the estimator's box."""
    flat = estimator.input_shape is not None
    shape = (n, estimator.n_features_in_) if flat else (n, *estimator.input_shape_)
    random = np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(256, size=shape, dtype=np.uint8)
    low, high = estimator.clip_values_ or (-1.0, 1.0)
    return random.uniform(low, high, size=shape).astype(dtype)


def _compare(
    estimator: BaseEnsembleClassifier,
    module: nn.Module,
    path: Path,
    input_dtype: str,
    tolerance: float,
) -> None:
    """Raise unless onnxruntime computes what the module does."""
    runtime = _need("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in _COMPARED:
        X = _inputs(estimator, n, input_dtype)
        (theirs,) = session.run([OUTPUT], {INPUT: X})
        with torch.inference_mode():
            ours = module(torch.from_numpy(X)).numpy()
        if not np.allclose(theirs, ours, rtol=tolerance, atol=tolerance):
            raise RuntimeError(
                f"onnxruntime differs from the estimator by up to {np.abs(theirs - ours).max():.3g}"
                f" on {n} random samples, more than tolerance={tolerance}; nothing was written"
            )


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {name}: pip install onnx onnxscript onnxruntime"
        ) from error
