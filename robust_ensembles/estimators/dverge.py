"""DVERGE: members that do not share vulnerabilities (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _registry
from ..losses import member_cross_entropy
from ..training import TrainingStep
from .feature_space import FeatureSpaceMethod


@_registry.method(
    "dverge",
    family="features",
    paper="Yang et al., NeurIPS 2020",
    summary="trains each member on images distilled from the others' weaknesses",
)
@dataclass(kw_only=True, repr=False, eq=False)
class DVERGEEnsembleClassifier(FeatureSpaceMethod):
    r"""Members trained on images that exploit the vulnerabilities of the others.

    .. math:: L = \sum_i \sum_{j\ne i} \mathrm{CE}(z_i(x'_j), y), \qquad
              x'_j = \arg\min_{|x' - x|_\infty \le \varepsilon} |f^l_j(x') - f^l_j(x_t)|^2

    The distilled image :math:`x'_j` looks like x and has member j's features, at a random layer
    l, of another sample :math:`x_t`. There is no clean cross-entropy.

    Parameters
    ----------
    eps : float, default=0.07
        Radius of the perturbation (maximum norm), in the units of X: for CIFAR-10; 0.35 for
        MNIST.
    step_size : float, default=0.007
        Length of a step, in the units of X: for CIFAR-10; 0.035 for MNIST.
    formulation : {"paper", "released"}, default="paper"
        Code and formula agree: it only sets `craft_bn`.
    n_estimators : int, default=3
        Number of members, at least two.

    References
    ----------
    .. [1] H. Yang et al., "DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation
       of Ensembles", NeurIPS 2020.

    Examples
    --------
    >>> from robust_ensembles import DVERGEEnsembleClassifier
    >>> clf = DVERGEEnsembleClassifier(pretrained=20, eps=0.15, step_size=0.015)
    """

    _paired_batches: ClassVar[bool] = True

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        self._check_n_estimators(2, "DVERGE trains a member on images distilled from the others")

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        distilled = self._distill(step)
        losses = []
        for i, member in enumerate(step.module):
            others = distilled[:i] + distilled[i + 1 :]
            logits = torch.stack([member(x) for x in others])
            losses.append(member_cross_entropy(logits, step.y, step.sample_weight).sum())
        return {
            "distilled_cross_entropy": torch.stack(losses).sum(),
            **self._adversarial_terms(step, x_adv, reduce="sum"),
        }
