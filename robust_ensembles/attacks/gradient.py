"""Attacks by projected gradient steps: FGSM, BIM, MIM, PGD and CW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import _registry
from .._parameters import above, at_least, count, flag, param
from .base import BoundedAttack
from .engine.ascent import Objective, StepRule, ascend
from .engine.balls import Ball
from .engine.noise import RESTART_SHIFT


@dataclass(kw_only=True, repr=False, eq=False)
class GradientAttack(BoundedAttack):
    """Base class of attacks that maximise the loss by projected gradient steps.

    Parameters
    ----------
    n_steps : int, default=20
        Number of steps, each with one gradient.
    step_size : float, default=None
        Length of a step in the units of X; None is a fixed fraction of eps, so that steps scale
        with eps.
    n_restarts : int, default=1
        Walks from different random points, each on the samples not broken by those before it.
    random_start : bool, default=True
        Whether walks begin at a random point of the ball, or at x.
    """

    n_steps: int = param(20, count())
    step_size: float | None = param(None, above(0), None)
    n_restarts: int = param(1, count())
    random_start: bool = param(True, flag())

    _relative_step: ClassVar[float] = 1 / 4

    def _climbs_anything(self) -> bool:
        return True

    def _steps(self) -> StepRule:
        step_size = self._relative_step * self.eps if self.step_size is None else self.step_size
        return StepRule(self.n_steps, step_size)

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        start = ball.random_point(seed) if self.random_start else ball.project(ball.x)
        walk = self._steps()
        if not stop_when_broken:
            return ascend(objective, ball, start, y, walk, stop_when_broken=False)[0]
        result = ball.project(ball.x).clone()
        active = (~objective.broken(result, y)).nonzero().squeeze(1)
        for restart in range(self.n_restarts):
            if not len(active):
                break
            part = ball[active]
            start = (
                part.random_point(seed + (restart << RESTART_SHIFT)) if restart else start[active]
            )
            found, broken = ascend(objective, part, start, y[active], walk, stop_when_broken=True)
            result[active] = found
            active = active[~broken]
        return result

    def _validate(self) -> None:
        super()._validate()
        if self.n_restarts > 1 and not self.random_start:
            raise ValueError(
                f"{type(self).__name__}: n_restarts={self.n_restarts} without random_start repeats "
                "one walk; set random_start=True"
            )


@_registry.attack(
    "pgd",
    kind="gradients",
    paper="Madry et al. 2018",
    summary="small projected steps from a random start, optional restarts",
    count="n_steps",
    cost=("n_steps", "n_restarts"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class PGD(GradientAttack):
    """Projected gradient descent from a random start (Madry et al. 2018).

    20 steps of eps / 4 by default.

    References
    ----------
    .. [1] A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
       ICLR 2018.
    """


@_registry.attack(
    "cw",
    kind="gradients",
    paper="Carlini and Wagner 2017",
    summary="PGD on the margin of Carlini and Wagner (2017), as used in ensemble papers",
    count="n_steps",
    cost=("n_steps", "n_restarts"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class CW(GradientAttack):
    """Projected ascent of the Carlini-Wagner margin, "CW" as the ensemble papers use it.

    The margin is the best wrong log-probability minus that of the label, picked by index.

    References
    ----------
    .. [1] N. Carlini and D. Wagner, "Towards Evaluating the Robustness of Neural Networks",
       IEEE S&P 2017.
    """

    loss: str = "cw_margin"


@_registry.attack(
    "bim",
    kind="gradients",
    paper="Kurakin et al. 2017",
    summary="small projected steps from the sample itself",
    count="n_steps",
    cost=("n_steps", "n_restarts"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class BIM(GradientAttack):
    """Basic iterative method: `PGD` from x itself, 10 steps of eps / 5 (Kurakin et al. 2017).

    References
    ----------
    .. [1] A. Kurakin, I. Goodfellow and S. Bengio, "Adversarial Examples in the Physical World",
       ICLR Workshop 2017.
    """

    n_steps: int = 10
    random_start: bool = False

    _relative_step: ClassVar[float] = 1 / 5


@_registry.attack(
    "mim",
    kind="gradients",
    paper="Dong et al. 2018",
    summary="BIM with momentum",
    count="n_steps",
    cost=("n_steps", "n_restarts"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class MIM(BIM):
    """Momentum iterative method: gradients of unit L1 norm accumulate (Dong et al. 2018).

    Parameters
    ----------
    decay : float, default=1.0
        Factor by which the accumulated direction shrinks at each step.

    References
    ----------
    .. [1] Y. Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018.
    """

    decay: float = param(1.0, at_least(0))

    def _steps(self) -> StepRule:
        plain = super()._steps()
        return StepRule(plain.n_steps, plain.step_size, self.decay)


@_registry.attack(
    "fgsm",
    kind="gradients",
    paper="Goodfellow et al. 2015",
    summary="one step along the sign of the gradient",
    cost=("n_steps", "n_restarts"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class FGSM(GradientAttack):
    """Fast gradient sign method: one step of length eps (Goodfellow et al. 2015).

    References
    ----------
    .. [1] I. Goodfellow, J. Shlens and C. Szegedy, "Explaining and Harnessing Adversarial
       Examples", ICLR 2015.
    """

    n_steps: int = 1
    random_start: bool = False

    _relative_step: ClassVar[float] = 1.0
