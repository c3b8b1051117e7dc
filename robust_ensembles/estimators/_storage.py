"""A fitted ensemble as a file."""

from __future__ import annotations

import os
from typing import Any


class StorageMixin:
    """Methods that write a fitted estimator; `robust_ensembles.persistence` does the work."""

    def save(self: Any, path: str | os.PathLike[str], *, optimizer_state: bool = False) -> None:
        """Write this estimator to a file that can be loaded without running foreign code.

        Parameters
        ----------
        path : path-like
            Replaced as a whole, or left as it was.
        optimizer_state : bool, default=False
            Whether the optimizer's memory is kept, so that training goes on as if it had never
            stopped. It makes the file two (SGD with momentum) or three times (Adam) as large.

        Raises
        ------
        NotFittedError
        ValueError
            If something that a prediction needs cannot be stored.

        See Also
        --------
        robust_ensembles.persistence.load : What is stored, and how it comes back.
        """
        from ..persistence import save

        save(self, path, optimizer_state=optimizer_state)

    def export_onnx(
        self: Any,
        path: str | os.PathLike[str],
        *,
        input_dtype: str = "float32",
        tolerance: float = 1e-5,
    ) -> None:
        """Write the deployed rule as an ONNX model, for serving.

        Parameters
        ----------
        path : path-like
        input_dtype : {"float32", "float64", "uint8"}, default="float32"
            What X will be there.
        tolerance : float, default=1e-5
            How far onnxruntime may be from this estimator.

        See Also
        --------
        robust_ensembles.persistence.export_onnx : The same as a function, with all details.
        """
        from ..persistence import export_onnx

        export_onnx(self, path, input_dtype=input_dtype, tolerance=tolerance)
