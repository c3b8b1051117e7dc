"""DVERGE: members that do not share vulnerabilities (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import _registry
from ..losses import member_cross_entropy
from ..training import TrainingStep
from .adversarial_training import DiversityMixin
from .base import BaseEnsembleClassifier
from .feature_space import DistillationMixin


@_registry.method(
    "dverge",
    family="features",
    paper="Yang et al., NeurIPS 2020",
    summary="each member learns to see through what deceives the others",
)
@dataclass(kw_only=True, repr=False, eq=False)
class DVERGEEnsembleClassifier(DistillationMixin, DiversityMixin, BaseEnsembleClassifier):
    r"""Members trained to see through what deceives the others.

    .. math:: L = \sum_i \sum_{j\ne i} \mathrm{CE}(z_i(x'_j), y), \qquad
              x'_j = \arg\min_{|x' - x|_\infty \le \varepsilon} |f^l_j(x') - f^l_j(x_t)|^2

    The distilled image :math:`x'_j` looks like x and has member j's features, at a random layer
    l, of another sample :math:`x_t`. There is no clean cross-entropy.

    Parameters
    ----------
    eps, step_size, n_steps, layers, layer_schedule, pretrained
        See `DistillationMixin`. For CIFAR-10 by default; eps=0.35 and step_size=0.035 for MNIST.
        The original starts from a trained vanilla ensemble: set `pretrained`.
    attack, attack_target, craft_bn, calibration
        Adversarial training beside; see `DiversityMixin`. By default each member has its own
        examples. `craft_bn` applies to distillation too.
    formulation : {"paper", "released"}, default="paper"
        Code and formula agree: it sets `craft_bn` only.
    **params
        See `EnsembleParameters`. At least two members.

    References
    ----------
    .. [1] H. Yang et al., "DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation
       of Ensembles", NeurIPS 2020.

    Examples
    --------
    >>> from robust_ensembles import DVERGEEnsembleClassifier
    >>> clf = DVERGEEnsembleClassifier(pretrained=20, eps=0.15, step_size=0.015)
    """

    attack_target: Literal["ensemble", "member"] = "member"

    _paired_batches: ClassVar[bool] = True
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseEnsembleClassifier._parameter_constraints,
        **DiversityMixin._adversarial_constraints,
        **DistillationMixin._distillation_constraints,
    }

    def _check_method(self, n_classes: int) -> None:
        self._check_attack()
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
