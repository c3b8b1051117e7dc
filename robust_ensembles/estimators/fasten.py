"""FASTEN: fast ensemble learning for improved adversarial robustness (Huang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _registry
from .._parameters import at_least, flag, param
from ..attacks.engine.ascent import StepRule
from ..attacks.engine.balls import LinfBall
from ..losses import (
    inter_model_divergence,
    intra_model_divergence,
    log_mean,
    member_cross_entropy,
)
from ..training import (
    Checkpoints,
    PerturbationMemory,
    StreamedX,
    TrainingStep,
    derive_seed,
    generator,
    repel,
)
from .feature_space import FeatureSpaceMethod

# from the released code: weight of the inter-model term relative to beta
_INTER_SHARE = 0.05
_INTER_CAP = 10.0


@_registry.method(
    "fasten",
    family="features",
    paper="Huang et al. 2023",
    summary="trains members on each other's one-step perturbations, stored and reused",
)
@dataclass(kw_only=True, repr=False, eq=False)
class FASTENEnsembleClassifier(FeatureSpaceMethod):
    r"""Members trained on each other's cheap perturbations, which are stored and reused.

    In each step, two random members each make one perturbation of the batch, by a single step
    away from their own features, blended with the sample's stored perturbation. Every member is
    trained on one that it did not make, x'':

    .. math:: L = \sum_i \mathrm{CE}(z_i(x''), y) + \beta\, \mathrm{intra}_i
              - 0.05\, \beta\, \mathrm{inter}_i

    with `intra_model_divergence` over the views x and x'' (and the adversarial view, with an
    attack) and the mean of `inter_model_divergence` over the other members. The paper's text was
    not available; this follows the authors' code.

    Parameters
    ----------
    beta : float, default=3.0
        Weight of the divergences.
    eps_init : float, default=8/255
        Size of the random start shared by both perturbing members, in the units of X.
    inter_gradient : bool, default=False
        Whether the inter-model term is differentiated (with respect to member i, capped at 10).
        In the released code both sides are detached, so it has no effect on training.
    clean_cross_entropy : bool, default=False
        Whether to train on the clean view: its cross-entropy is added and its predictions
        propagate gradients. Otherwise it only serves as a fixed view.
    n_steps : int, default=1
        Number of steps of a perturbation.
    attack : BoundedAttack, default=None
        Adds adversarial training: the cross-entropy on examples around x''. Its `clip_values`
        default to the estimator's box. None adds nothing; the released code uses
        ``PGD(eps=8 / 255, step_size=2 / 255, n_steps=1)``.
    formulation : {"paper", "released"}, default="paper"
        Only the code is known, so it only sets `craft_bn`.
    n_estimators : int, default=3
        Number of members, at least two.

    Notes
    -----
    One perturbation is stored for each training sample, in the position before augmentation: crops
    and flips misalign it, in the released code too. The stored perturbations take as much memory as
    the training set in floating point. They are kept for one call of `fit` or, with `warm_start`,
    as long as the calls have the same X, and are not pickled.

    References
    ----------
    .. [1] L. Huang et al., "FASTEN: Fast Ensemble Learning for Improved Adversarial
       Robustness", 2023.

    Examples
    --------
    >>> from robust_ensembles import FASTENEnsembleClassifier
    >>> clf = FASTENEnsembleClassifier(pretrained=20, beta=3.0)
    """

    beta: float = param(3.0, at_least(0))
    eps: float = 0.06
    step_size: float = 0.06
    n_steps: int = 1
    eps_init: float = param(8 / 255, at_least(0))
    inter_gradient: bool = param(False, flag())
    clean_cross_entropy: bool = param(False, flag())

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        self._check_n_estimators(2, "FASTEN trains members on perturbations that others made")

    def _train(
        self,
        X: NDArray[Any],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None,
        epochs: int,
        checkpoints: Checkpoints | None = None,
    ) -> FASTENEnsembleClassifier:
        data = X.fingerprint() if isinstance(X, StreamedX) else joblib.hash(X)
        if not self.n_iter_ or getattr(self, "_memory", (None, None))[0] != data:
            n_copies = self.net_.augmentation.n_copies
            self._memory = data, PerturbationMemory(len(X) * n_copies)
        try:
            return super()._train(X, y, sample_weight, epochs, checkpoints)
        finally:
            if not self.warm_start:
                del self._memory

    def _method_state(self) -> dict[str, Tensor]:
        kept = self._memory[1].kept
        return {} if kept is None else {"memory": kept}

    def _restore_method_state(self, state: dict[str, Tensor]) -> None:
        if "memory" in state:
            self._memory[1].kept = state["memory"].to(self.device_)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_memory"}

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        perturbed = step.remembered(lambda: self._perturbed(step), self, "perturbed")
        adversarial = self._adversarial_views(step, perturbed)
        with torch.set_grad_enabled(self.clean_cross_entropy or self._coupling() is not None):
            clean = step.module.member_logits(step.x)
        logits = step.member_logits(perturbed)
        views = [clean if self.clean_cross_entropy else clean.detach(), logits]
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        terms = {"perturbed_cross_entropy": losses.sum()}
        if self.clean_cross_entropy:
            losses = member_cross_entropy(clean, step.y, step.sample_weight)
            terms["clean_cross_entropy"] = losses.sum()
        if adversarial is not None:
            logits = step.member_logits(adversarial)
            views.append(logits)
            terms.update(self._terms_on(step, logits, reduce="sum", clean=clean))
        log_q = torch.stack(views, dim=1).log_softmax(dim=-1)
        terms["intra_model"] = self.beta * self._intra(log_q, step)
        terms["inter_model"] = -_INTER_SHARE * self.beta * self._inter(log_q, step)
        return terms

    def _perturbed(self, step: TrainingStep) -> list[Tensor]:
        """The batch for each member, perturbed by another one; stored when the step commits."""
        draw = np.random.default_rng(derive_seed(step.seed, "makers"))
        n_members = len(step.module)
        a, b = (int(m) for m in draw.choice(n_members, size=2, replace=False))
        memory = self._memory[1]
        index = step.batch.sample_index
        kept = memory.recall(index, like=step.x)
        is_first = kept.isnan()
        ball = LinfBall(step.x, self.eps, step.clip_values)
        made: dict[int, Tensor] = {}
        for m in (a, b):
            fresh, r = self._make(step, m, ball) - step.x, float(draw.random())
            blended = torch.where(is_first, fresh, r * fresh + (1 - r) * kept)
            made[m] = ball.project(step.x + blended)
            kept = made[m] - step.x  # b's is blended with what a has just left
        step.on_commit("perturbation memory", lambda: memory.keep(index, kept))
        peer = {a: b, b: a}
        return [made[peer.get(i, a if draw.random() < 0.5 else b)] for i in range(n_members)]

    def _make(self, step: TrainingStep, m: int, ball: LinfBall) -> Tensor:
        """Perturb the batch by steps away from its features in member m."""
        shared = generator(derive_seed(step.seed, "shared start"), step.x.device)
        own = generator(derive_seed(step.seed, "own start", m), step.x.device)
        noise = self.eps_init * _uniform(step.x, shared) + self.eps * _uniform(step.x, own)
        start = ball.clip(step.x + noise)
        layer, walk = self._layer_names(step)[m], StepRule(self.n_steps, self.step_size)
        with step.frozen(self._craft_mode):
            return repel(step, step.module[m], layer, start=start, ball=ball, walk=walk)

    def _adversarial_views(
        self, step: TrainingStep, perturbed: list[Tensor]
    ) -> list[Tensor] | None:
        """Adversarial examples around each member's batch."""
        if self.attack is None:
            return None
        targets = [member if self.attack_target == "member" else None for member in step.module]
        return [
            step.craft(self.attack, mode=self._craft_mode, target=target, x=x)
            for target, x in zip(targets, perturbed, strict=True)
        ]

    def _intra(self, log_q: Tensor, step: TrainingStep) -> Tensor:
        weight = step.sample_weight
        return torch.stack([intra_model_divergence(member, weight) for member in log_q]).sum()

    def _inter(self, log_q: Tensor, step: TrainingStep) -> Tensor:
        """Sum over members of the mean divergence from each of the others."""
        log_mean_q = [log_mean(member) for member in log_q.detach()]
        own = log_q if self.inter_gradient else log_q.detach()
        divergences = [
            inter_model_divergence(own[i], log_mean_q[j], step.sample_weight, cap=_INTER_CAP)
            for i in range(len(own))
            for j in range(len(own))
            if j != i
        ]
        return torch.stack(divergences).sum() / (len(own) - 1)


def _uniform(x: Tensor, noise: torch.Generator) -> Tensor:
    """Uniform numbers in [-1, 1), of the shape of x."""
    return 2 * torch.rand(x.shape, generator=noise, device=x.device, dtype=x.dtype) - 1
