"""What computed a number or trained a model."""

from __future__ import annotations

import platform

import numpy as np
import sklearn
import skorch
import torch

from ._version import __version__


def versions() -> dict[str, str]:
    """Of the package, of Python, and of the libraries that results depend on."""
    return {
        "robust_ensembles": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
        "numpy": np.__version__,
    }
