"""Vanilla ensemble: independent members, plain cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import _registry
from .._parameters import choice, param
from ..losses import Formulation, member_cross_entropy
from ..training import TrainingStep
from .base import BaseEnsembleClassifier


@_registry.method(
    "vanilla",
    family="baseline",
    summary="trains the members independently with the cross-entropy",
)
@dataclass(kw_only=True, repr=False, eq=False)
class VanillaEnsembleClassifier(BaseEnsembleClassifier):
    r"""Members trained independently with the cross-entropy: the baseline without a defence.

    .. math:: L = \sum_i \mathrm{CE}(z_i(x), y)

    Parameters
    ----------
    formulation : {"paper", "released"}, default="paper"
        ``"released"`` divides by the number of members, as NCEn's code does for its baseline.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(max_epochs=2, random_state=0).fit(X[:500], y[:500])
    >>> clf.predict_proba(X[:2]).shape
    (2, 10)
    """

    formulation: Formulation = param("paper", choice("paper", "released"))

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        logits = step.module.member_logits(step.x)
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        return {"cross_entropy": losses.sum() if self.formulation == "paper" else losses.mean()}
