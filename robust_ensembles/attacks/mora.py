"""MORA: the model-reweighing attack on ensembles (Gao et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _registry
from .._checks import check_number
from .apgd import FIRST_STEP, MomentumAttack, Walk, WalkState
from .engine.ascent import Objective
from .engine.balls import Ball
from .engine.forward import Minibatches

# from the paper: members' logits are scaled down if the gap between the two largest exceeds this
_LARGEST_GAP = 10.0
_TINY = 1e-8


class ReweighedMembers(Objective):
    r"""Objective that weights the members by how much each can contribute to breaking the ensemble.

    The gradient of :math:`\log \bar p_c - \log \bar p_y` in member i's logit of class c is

    .. math:: w_i \propto p_{ic} \Big( \frac{p_{iy}}{\bar p_y} + \frac{1 - p_{ic}}{\bar p_c} \Big)

    with c the strongest wrong class. A confident member's own gradient vanishes, and a broken
    member needs no further attack, so the attack maximises the loss of a mixture of logits in
    which members that are still correct have weight w:

    .. math:: (1 - s) \frac{\bar z}{\mathrm{gap}(\bar z)} + s\, \frac{\sum_i w_i z_i}{\sum_i w_i}

    Parameters
    ----------
    module : nn.Module
    share : float
        s, the weight of the reweighed members.
    minibatches : Minibatches, default=None
        See `Objective`.
    """

    def __init__(
        self, module: nn.Module, share: float, minibatches: Minibatches | None = None
    ) -> None:
        super().__init__(module, "margin", minibatches=minibatches)
        self.share = share

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        mean = logits.mean(dim=0)
        members = logits / (_gap(logits).amax(dim=0) / _LARGEST_GAP).clamp_min(1.0).unsqueeze(-1)
        weights = _weights(members.detach(), y)
        reweighed = (weights.unsqueeze(-1) * members).sum(dim=0) / (
            weights.sum(dim=0).unsqueeze(-1) + _TINY
        )
        plain = mean / _gap(mean).clamp_min(_TINY).unsqueeze(-1)
        mixed = (1 - self.share) * plain + self.share * reweighed
        return super()._value(mixed.unsqueeze(0), y)


def _gap(logits: Tensor) -> Tensor:
    """Gap between the two largest logits; not differentiated."""
    top = logits.detach().topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def _weights(members: Tensor, y: Tensor) -> Tensor:
    """Weight w of each member, (n_members, n_samples); 0 for members that are already wrong."""
    p = F.softmax(members, dim=-1)
    mean = p.mean(dim=0)
    wrong = mean.scatter(1, y[:, None], -1.0).argmax(dim=1)
    p_y, p_c = (p.gather(-1, i.expand(len(p), -1).unsqueeze(-1)).squeeze(-1) for i in (y, wrong))
    mean_y, mean_c = (mean.gather(1, i[:, None]).squeeze(1) for i in (y, wrong))
    weights = p_c * (p_y / mean_y.clamp_min(_TINY) + (1 - p_c) / mean_c.clamp_min(_TINY))
    return weights * (members.argmax(dim=-1) == y)


@_registry.attack(
    "mora",
    kind="gradients",
    paper="Gao et al. 2022",
    summary="reweights the members of an ensemble as it runs",
    count="n_steps",
    cost=("n_steps", "n_gradients", "shares"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class MORA(MomentumAttack):
    """Attacks an ensemble through a mixture of its members that is reweighed at every step.

    The gradients of an ensemble trained for diversity cancel in the sum, and those of confident
    members vanish. See `ReweighedMembers` for the objective used instead; steps shrink linearly
    from twice eps, with momentum 0.75. For a module without members it is an ordinary attack.

    Parameters
    ----------
    shares : sequence of float, default=(0.5, 0.0, 0.25, 0.75, 1.0)
        Weights s of the reweighed members; one walk for each, on the samples not yet broken.

    References
    ----------
    .. [1] Y. Gao et al., "MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing
       Attack", NeurIPS 2022.
    """

    shares: Sequence[float] = (0.5, 0.0, 0.25, 0.75, 1.0)

    def _walks(self, objective: Objective, x: Tensor, y: Tensor) -> Iterator[Walk]:
        for number, share in enumerate(self.shares):
            climbed = ReweighedMembers(objective.module, share, objective.minibatches)
            yield Walk(climbed, y, number)

    def _adapt(self, ball: Ball, state: WalkState, step: int, n_steps: int) -> WalkState:
        size = FIRST_STEP[type(ball)] * self.eps * (1 - step / n_steps)
        return replace(state, step_size=torch.full_like(state.step_size, size))

    def _validate(self) -> None:
        super()._validate()
        if not isinstance(self.shares, Sequence) or not self.shares:
            raise ValueError(f"MORA: shares must be a list of numbers; got {self.shares!r}")
        for share in self.shares:
            check_number(share, "MORA: each of shares", 0, 1)
        if self.targeted or self.aggregation != "mean_proba":
            raise ValueError(
                "MORA mixes the members itself and is untargeted: leave aggregation and targeted "
                "as they are, or take APGD"
            )
