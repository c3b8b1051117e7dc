"""TRS: transferability reduced smooth ensembles (Yang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from sklearn.utils._param_validation import Options
from torch import Tensor

from .. import _registry
from .._parameters import at_least, choice, count, flag, param
from ..attacks.engine.ascent import GradientOracle, StepRule, ascend
from ..attacks.engine.balls import LinfBall
from ..losses import CosineEpsMode, member_cross_entropy, trs_similarity, trs_smoothness
from ..training import TrainingStep
from .adversarial_training import AdversarialTraining, over_members


@_registry.method(
    "trs",
    family="gradients",
    paper="Yang et al., NeurIPS 2021",
    summary="makes input gradients orthogonal, and short around the data",
)
@dataclass(kw_only=True, repr=False, eq=False)
class TRSEnsembleClassifier(AdversarialTraining):
    r"""Members with orthogonal input gradients that are short in a neighbourhood of the data.

    .. math:: L = \tfrac1N \sum_i \mathrm{CE}_i + s \Big( c\, \tfrac1B\sum_b
              \tfrac{2}{N(N-1)} \sum_{i<j} |\cos(g_{ib}, g_{jb})|
              + l\, \tfrac1B \sum_b \tfrac2N \sum_i |g_{ib}(\hat x)|_2^2 \Big)

    with `scale` s, `coeff` c and `lamda` l. The first half of :math:`\hat x` is clean; the second
    maximises the gradients' lengths within a ball of radius delta, which grows from epoch to epoch.
    This inner maximisation differentiates gradients in each of its steps: by far the most expensive
    method.

    Parameters
    ----------
    scale : float, default=1.0
        Weight of both terms. `scale`, `coeff` and `lamda` are the names in the released code; the
        defaults are its values for CIFAR-10, (5, 2, 2) for MNIST.
    coeff : float, default=20.0
        Weight of the similarity: the paper's lambda_a is scale * coeff.
    lamda : float, default=2.5
        Weight of the smoothness: the paper's lambda_b is scale * lamda.
    delta_init : float, default=0.01
        Radius of the inner maximisation in the first epoch, in the units of X; 0.1 for MNIST.
    delta_final : float, default=0.03
        The same in the last of `max_epochs`; 0.2 for MNIST.
    n_inner_steps : int, default=6
        Number of steps of the inner maximisation, each of length delta / 3.
    inner_max : bool, default=True
        Whether to run the inner maximisation. False measures smoothness at the clean batch, as one
        port does.
    inner_momentum : bool, default=None
        Whether steps follow the sum of all gradients so far, as the released code does since it
        never zeroes them. None is True for ``formulation="released"``.
    norm_power : {2, 1}, default=2
        Power of the gradients' lengths. The coefficients were chosen for squares, as in the
        released code.
    gradient_scale : {"mean", "sum"}, default="mean"
        Reduction over the batch of the loss whose gradients are used. The coefficients were chosen
        for the mean.
    cross_entropy_reduce : {"mean", "sum"}, default=None
        Reduction over the members. None is the mean, or the sum for ``formulation="released"``.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        ``"torch1"`` shrinks the cosines of short gradients as torch did before 1.12.
    craft_bn : {"train_frozen_stats", "train", "eval"}, default=None
        BatchNorm while crafting and in the inner maximisation: batch statistics, with the running
        statistics restored afterwards; batch statistics, with the running statistics updated by
        the iterates as in released code; or running statistics. None is the first, or the second
        for ``formulation="released"``.
    formulation : {"paper", "released"}, default="paper"
        Sets the parameters above that are None, and whether the last epoch reaches `delta_final`.
    n_estimators : int, default=3
        Number of members, at least two.

    References
    ----------
    .. [1] Z. Yang et al., "TRS: Transferability Reduced Ensemble via Promoting Gradient
       Diversity and Model Smoothness", NeurIPS 2021.

    Examples
    --------
    >>> from robust_ensembles import TRSEnsembleClassifier
    >>> clf = TRSEnsembleClassifier(
    ...     scale=5.0, coeff=2.0, lamda=2.0, delta_init=0.1, delta_final=0.2
    ... )
    """

    scale: float = param(1.0, at_least(0))
    coeff: float = param(20.0, at_least(0))
    lamda: float = param(2.5, at_least(0))
    delta_init: float = param(0.01, at_least(0))
    delta_final: float = param(0.03, at_least(0))
    n_inner_steps: int = param(6, count())
    inner_max: bool = param(True, flag())
    inner_momentum: bool | None = param(None, flag(), None)
    norm_power: Literal[1, 2] = param(2, Options(int, {1, 2}))
    gradient_scale: Literal["mean", "sum"] = param("mean", choice("mean", "sum"))
    cross_entropy_reduce: Literal["mean", "sum"] | None = param(None, choice("mean", "sum"), None)
    cos_eps_mode: CosineEpsMode = param("torch2", choice(*get_args(CosineEpsMode)))

    _second_order: ClassVar[bool] = True

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        self._check_n_estimators(2, "TRS compares the gradients of pairs of members")

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        x_rough = step.remembered(lambda: self._roughest(step), self, "roughest")
        logits, g = step.input_gradients(step.input_leaves())
        g_rough = g if x_rough is None else _gradients(step, x_rough, step.y)
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        reduce = self.cross_entropy_reduce or ("mean" if self.formulation == "paper" else "sum")
        return {
            "cross_entropy": over_members(losses, reduce),
            "similarity": self.scale * self.coeff * self._similarity(g, step),
            "smoothness": self.scale * self.lamda * self._smoothness(g_rough, step),
            **self._adversarial_terms(step, x_adv, reduce=reduce, clean=logits),
        }

    def _similarity(self, g: Tensor, step: TrainingStep) -> Tensor:
        return trs_similarity(g, cos_eps_mode=self.cos_eps_mode, sample_weight=step.sample_weight)

    def _smoothness(self, g: Tensor, step: TrainingStep) -> Tensor:
        g = g if self.gradient_scale == "mean" else g * len(step.x)
        return trs_smoothness(g, norm_power=self.norm_power, sample_weight=step.sample_weight)

    def _roughest(self, step: TrainingStep) -> Tensor | None:
        """Points at which smoothness is measured: half of the batch, and the inner maximisers."""
        clean = len(step.x) // 2
        if not self.inner_max or len(step.x) - clean < 2:  # BatchNorm needs two samples
            return None
        x, y = step.x[clean:], step.y[clean:]
        released = self.formulation == "released"
        accumulate = released if self.inner_momentum is None else self.inner_momentum
        delta = self._delta(step.epoch)
        ball = LinfBall(x, delta, step.clip_values)
        with step.frozen(self._craft_mode):
            roughness = _Roughness(step, self.norm_power, accumulate=accumulate)
            walk = StepRule(self.n_inner_steps, delta / 3)
            start = ball.random_point(step.seed)
            found, _ = ascend(roughness, ball, start, y, walk, stop_when_broken=False)
        return torch.cat([step.x[:clean], found])

    def _delta(self, epoch: int) -> float:
        """Radius of the inner maximisation in an epoch, counted from 0."""
        last = self.max_epochs - 1 if self.formulation == "paper" else self.max_epochs
        progress = min(epoch / last, 1.0) if last else 1.0
        return self.delta_init + (self.delta_final - self.delta_init) * progress


class _Roughness(GradientOracle):
    """Lengths of the members' input gradients, as an objective to maximise."""

    def __init__(self, step: TrainingStep, norm_power: int, *, accumulate: bool) -> None:
        self.step, self.norm_power = step, norm_power
        self.accumulate = accumulate
        self.total: Tensor | float = 0.0

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the lengths, or the sum of all so far; nothing counts as broken."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            lengths = trs_smoothness(_gradients(self.step, x, y), norm_power=self.norm_power)
            (gradient,) = torch.autograd.grad(lengths, x)
        if self.accumulate:
            gradient = self.total + gradient
            self.total = gradient
        return gradient, self.broken(x, y)


def _gradients(step: TrainingStep, x: Tensor, y: Tensor) -> Tensor:
    """Input gradients of the members at x, (n_members, n_samples, n_features)."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    # copies, so that each member has its own gradient, which can be differentiated by x itself
    _, g = step.input_gradients([x.clone() for _ in step.module], y)
    return g
