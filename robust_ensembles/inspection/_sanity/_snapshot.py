"""An estimator as it was at some time, to compare with later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._report._fingerprint import digest_of_model

if TYPE_CHECKING:
    from ..subject import Subject


@dataclass(frozen=True)
class Snapshot:
    """An estimator before its evaluation.

    Parameters
    ----------
    digest : str
        Of its weights, buffers and parameters.
    modes : dict of bool
        Which submodules are in training mode.
    proba : ndarray of shape (n_samples, n_classes) or None
        Of the first samples; None if the estimator cannot be called.
    """

    digest: str
    modes: dict[str, bool]
    proba: NDArray[np.float64] | None

    @classmethod
    def of(cls, subject: Subject) -> Snapshot:
        """What can be seen of a subject now."""
        digest = digest_of_model(subject.estimator)
        try:
            modes = {name: m.training for name, m in subject.target.module.named_modules()}
            return cls(digest, modes, subject.proba())
        except Exception:
            # what is wrong with it is for the checks to say
            return cls(digest, {}, None)
