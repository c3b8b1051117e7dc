"""The minimum-norm attack of Carlini and Wagner (2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _registry
from .._parameters import above, at_least, count, param
from .engine.ascent import Objective
from .engine.balls import Box
from .engine.forward import member_logits
from .engine.margins import aggregate, cw_margin
from .minimum_norm import MinimumNormAttack, Nearest

# keeps artanh finite at the ends of the box, and Adam's way back from there short
_INSIDE = 1 - 1e-4
_FACTOR_WITHOUT_SUCCESS = 10.0


@_registry.attack(
    None,
    kind="minimum norm",
    paper="Carlini and Wagner 2017",
    summary="the original minimum-norm attack",
    cost=("n_steps", "n_searches"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class CarliniWagnerL2(MinimumNormAttack):
    r"""Minimises distance and margin together, searching for the weight between them.

    .. math:: \min_x |x - x_0|_2^2 + c \max(\log\bar p_y - \max_{j \ne y} \log\bar p_j
              + \kappa, 0)

    by Adam, in the variable :math:`\mathrm{artanh}` of x where there is a box, with a binary
    search for the smallest c that succeeds, separately for each sample. Slow; `FAB` finds equally
    near examples in less time. See `MinimumNormAttack` for the effect of
    ``stop_when_broken=False``.

    Parameters
    ----------
    norm : {"l2"}, default="l2"
        Norm of the perturbation.
    n_steps : int, default=1000
        Steps of Adam in each search.
    n_searches : int, default=9
        Weights c tried for each sample.
    initial_const : float, default=0.01
        The first c.
    confidence : float, default=0.0
        Kappa, in the units of log-probabilities.
    lr : float, default=0.01
        Learning rate of Adam.

    References
    ----------
    .. [1] N. Carlini and D. Wagner, "Towards Evaluating the Robustness of Neural Networks",
       IEEE S&P 2017.
    """

    norm: str = "l2"
    n_steps: int = param(1000, count())
    n_searches: int = param(9, count())
    initial_const: float = param(0.01, above(0))
    confidence: float = param(0.0, at_least(0))
    lr: float = param(0.01, above(0))

    def _search(self, objective: Objective, nearest: Nearest, y: Tensor, seed: int) -> None:
        low = torch.zeros_like(nearest.distance)
        high = torch.full_like(low, torch.inf)
        const = torch.full_like(low, self.initial_const)
        for _ in range(self.n_searches):
            active = nearest.wanting()
            if not len(active):
                return
            found = self._minimise(objective, nearest, active, y[active], const[active])
            c = const[active]
            high[active] = torch.where(found, c.minimum(high[active]), high[active])
            low[active] = torch.where(found, low[active], c.maximum(low[active]))
            middle = (low[active] + high[active]) / 2
            const[active] = torch.where(
                high[active].isfinite(), middle, _FACTOR_WITHOUT_SUCCESS * c
            )

    def _minimise(
        self, objective: Objective, nearest: Nearest, active: Tensor, y: Tensor, const: Tensor
    ) -> Tensor:
        """Descend with one weight for each sample; whether an example was found, (n_active,)."""
        origin = nearest.ball.x[active]
        to_x, to_variable = _coordinates(nearest.ball.clip_values)
        variable = to_variable(origin).requires_grad_()
        adam = torch.optim.Adam([variable], lr=self.lr)
        found = torch.zeros(len(active), dtype=torch.bool, device=origin.device)

        def at(w: Tensor, origin: Tensor, y: Tensor, const: Tensor) -> tuple[Tensor, ...]:
            w = w.detach().requires_grad_()
            with torch.enable_grad():
                x = nearest.ball.clip(to_x(w))
                logits = member_logits(objective.module, x)
                margin = cw_margin(aggregate(logits, objective.aggregation), y, objective.combiner)
                lacking = (self.confidence - margin).clamp_min(0)
                distance = (x - origin).square().flatten(1).sum(dim=1)
                (gradient,) = torch.autograd.grad((distance + const * lacking).sum(), w)
            return gradient, x.detach(), objective.decided(logits.detach(), y)

        for _ in range(self.n_steps):
            variable.grad, x, broken = objective.minibatches.map(at, variable, origin, y, const)
            nearest.offer(active, x, broken)
            found |= broken
            adam.step()
        return found

    def _validate(self) -> None:
        super()._validate()
        if self.norm != "l2":
            raise ValueError(
                f"CarliniWagnerL2 measures in norm='l2'; got {self.norm!r}. FAB takes 'linf' too"
            )


def _coordinates(
    box: Box | None,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Maps from Adam's unbounded variable to points of the box, and back."""
    if box is None:
        return (lambda variable: variable), (lambda x: x.detach().clone())
    centre, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    return (
        lambda variable: centre + half * variable.tanh(),
        lambda x: ((x.detach() - centre) / half * _INSIDE).atanh(),
    )
