"""ADP: adaptive diversity promoting (Pang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import _registry
from .._parameters import at_least, flag, param
from ..losses import adp_regularizer, member_cross_entropy
from ..training import TrainingStep
from .adversarial_training import AdversarialTraining, Reduce


@_registry.method(
    "adp",
    family="predictions",
    paper="Pang et al., ICML 2019",
    summary="makes the predictions for the wrong classes span a large volume",
)
@dataclass(kw_only=True, repr=False, eq=False)
class ADPEnsembleClassifier(AdversarialTraining):
    r"""Members whose predictions for the wrong classes span a large volume.

    .. math:: L = \sum_i \mathrm{CE}_i - \alpha\, H(\bar p)
              - \beta \log\det(\hat M^T \hat M + 10^{-6} I)

    with the terms of `robust_ensembles.losses.adp_regularizer`.

    Parameters
    ----------
    alpha : float, default=2.0
        Weight of the ensemble's entropy.
    beta : float, default=0.5
        Weight of the log-determinant.
    regularize_adversarial : bool, default=None
        Whether, with an attack, the two terms apply to the adversarial predictions too, as in
        the original code. None is True for ``formulation="released"``.
    formulation : {"paper", "released"}, default="paper"
        Sets `regularize_adversarial` and `craft_bn`; has no effect without an attack.
    n_estimators : int, default=3
        Number of members, less than the number of classes.

    References
    ----------
    .. [1] T. Pang et al., "Improving Adversarial Robustness via Promoting Ensemble Diversity",
       ICML 2019.

    Examples
    --------
    >>> from robust_ensembles import ADPEnsembleClassifier
    >>> clf = ADPEnsembleClassifier(alpha=2.0, beta=0.5, max_epochs=30)
    """

    alpha: float = param(2.0, at_least(0))
    beta: float = param(0.5, at_least(0))
    regularize_adversarial: bool | None = param(None, flag(), None)

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        if self.n_estimators > n_classes - 1:
            raise ValueError(
                f"ADP cannot make n_estimators={self.n_estimators} members differ with "
                f"{n_classes} classes: their predictions beside the true class have "
                f"{n_classes - 1} dimensions. Use n_estimators={max(n_classes - 1, 1)} or fewer."
            )

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        logits = step.module.member_logits(step.x)
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        return {
            "cross_entropy": losses.sum(),
            "entropy": self._regularizer(logits, step, alpha=self.alpha),
            "log_determinant": self._regularizer(logits, step, beta=self.beta),
            **self._adversarial_terms(step, x_adv, reduce="sum", clean=logits),
        }

    def _adversarial_loss(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce
    ) -> dict[str, Tensor]:
        terms = super()._adversarial_loss(step, adversarial, reduce=reduce)
        released = self.formulation == "released"
        if released if self.regularize_adversarial is None else self.regularize_adversarial:
            entropy = self._regularizer(adversarial, step, alpha=self.alpha)
            terms["adversarial_entropy"] = entropy
            determinant = self._regularizer(adversarial, step, beta=self.beta)
            terms["adversarial_log_determinant"] = determinant
        return terms

    def _regularizer(
        self, logits: Tensor, step: TrainingStep, *, alpha: float = 0.0, beta: float = 0.0
    ) -> Tensor:
        p = logits.softmax(dim=-1)
        return adp_regularizer(p, step.y, alpha=alpha, beta=beta, sample_weight=step.sample_weight)
