"""GAL: gradient alignment loss (Kariyappa and Qureshi 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from .. import _registry
from .._parameters import at_least, choice, param
from ..losses import CosineEpsMode, gal_regularizer, member_cross_entropy
from ..training import TrainingStep
from .adversarial_training import AdversarialTraining, over_members


@_registry.method(
    "gal",
    family="gradients",
    paper="Kariyappa and Qureshi 2019, arXiv:1901.09981",
    summary="pushes the directions of the members' input gradients apart",
)
@dataclass(kw_only=True, repr=False, eq=False)
class GALEnsembleClassifier(AdversarialTraining):
    r"""Members whose input gradients point away from each other.

    .. math:: L = \tfrac1N \sum_i \mathrm{CE}_i
              + \lambda\, \tfrac1B \sum_b \log \sum_{i<j} \exp(\cos(g_{ib}, g_{jb}))

    The original trains networks with `LeakyReLU` (``module_params={"activation":
    "leaky_relu"}``), since gradients of ReLUs vanish where they should be aligned, on noisy images
    (``augmentation=GaussianNoise(0.045)`` for CIFAR-10).

    Parameters
    ----------
    lam : float, default=0.5
        Weight of the alignment.
    cross_entropy_reduce : {"mean", "sum"}, default="mean"
        Reduction over the members; one of the released ports uses the sum.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        ``"torch1"`` shrinks the cosines of short gradients as torch did before 1.12.
    formulation : {"paper", "released"}, default="paper"
        The released code agrees with the formula, so it only sets `craft_bn`.
    n_estimators : int, default=3
        Number of members, at least two.

    References
    ----------
    .. [1] S. Kariyappa and M. K. Qureshi, "Improving Adversarial Robustness of Ensembles with
       Diversity Training", 2019, arXiv:1901.09981.

    Examples
    --------
    >>> from robust_ensembles import GALEnsembleClassifier
    >>> clf = GALEnsembleClassifier(lam=0.5, module_params={"activation": "leaky_relu"})
    """

    lam: float = param(0.5, at_least(0))
    cross_entropy_reduce: Literal["mean", "sum"] = param("mean", choice("mean", "sum"))
    cos_eps_mode: CosineEpsMode = param("torch2", choice(*get_args(CosineEpsMode)))

    _second_order: ClassVar[bool] = True

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        self._check_n_estimators(2, "GAL compares the gradients of pairs of members")

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        logits, g = step.input_gradients(step.input_leaves())
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        reduce = self.cross_entropy_reduce
        coherence = gal_regularizer(
            g, cos_eps_mode=self.cos_eps_mode, sample_weight=step.sample_weight
        )
        return {
            "cross_entropy": over_members(losses, reduce),
            "gradient_alignment": self.lam * coherence,
            **self._adversarial_terms(step, x_adv, reduce=reduce, clean=logits),
        }
