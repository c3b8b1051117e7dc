"""Square: random search by patches, by outputs alone (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import is_number
from ._base import BoundedAttack
from ._objective import Objective
from ._patches import PROPOSALS
from .engine.balls import Ball
from .engine.noise import sample_keys, stream

# of 10,000 queries, those after which the patches' area is halved
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_QUERIES = 10_000


@dataclass(kw_only=True, repr=False, eq=False)
class Square(BoundedAttack):
    """Random search that changes a patch of pixels at a time and keeps what raises the loss.

    Looks at the outputs of the module only, so it finds out whether gradients mislead. In rows of
    features a patch is a run of neighbours. See `BoundedAttack` for the other parameters.

    Parameters
    ----------
    n_queries : int, default=5000
        Outputs looked at for each sample, beside the first two.
    p_init : float, default=0.8
        Part of the image that the first patches cover; it shrinks on the paper's schedule.
    loss : {"cw_margin", ...}, default="cw_margin"

    References
    ----------
    .. [1] M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, "Square Attack: a
       Query-Efficient Black-Box Adversarial Attack via Random Search", ECCV 2020.
    """

    _counts: ClassVar[tuple[str, ...]] = (*BoundedAttack._counts, "n_queries")

    n_queries: int = 5000
    p_init: float = 0.8
    loss: str = "cw_margin"

    @property
    def gradient_free(self) -> bool:
        """True: nothing need be differentiable."""
        return True

    def count_queries(self, module: nn.Module, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial examples, and how many outputs were looked at to find them.

        Parameters
        ----------
        module : nn.Module
        X : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        X_adv : Tensor of shape (n_samples, ...)
            As the attack itself returns them.
        n_queries : int64 Tensor of shape (n_samples,)
            1 for samples that are wrong from the start, `n_queries` + 2 for those that withstand.
        """
        counted = _Counting(**self.get_params())
        X_adv = counted(module, X, y)
        return X_adv, torch.cat(counted.counts).to(X.device)

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        return self._search(objective, ball, y, seed, stop_when_broken)[0]

    def _search(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> tuple[Tensor, Tensor]:
        """Examples, and the numbers of queries."""
        proposal = PROPOSALS[self.norm](ball, self.eps)
        keys = sample_keys(ball.x, seed)
        result = ball.project(ball.x).clone()
        n_queries = torch.ones_like(y)
        active = torch.arange(len(y), device=y.device)
        if stop_when_broken:
            active = active[~objective.broken(result, y)]
        x = proposal.start(active, stream(keys[active], 0))
        loss, broken = objective.look(x, y[active])
        n_queries[active] += 1
        for query in range(self.n_queries):
            if stop_when_broken and broken.any():
                result[active[broken]] = x[broken]
                active, x, loss = active[~broken], x[~broken], loss[~broken]
            if not len(active):
                return result, n_queries
            part = self.part(query)
            proposed = proposal.change(active, x, part, stream(keys[active], query + 1))
            new_loss, broken = objective.look(proposed, y[active])
            n_queries[active] += 1
            # to break and to raise the loss are not the same under every loss
            better = (new_loss > loss) | (broken & stop_when_broken)
            x[better], loss = proposed[better], torch.where(better, new_loss, loss)
        result[active] = x
        return result, n_queries

    def part(self, query: int) -> float:
        """Part of the image that a patch covers at a query, counted from 0."""
        scaled = query / self.n_queries * _SCHEDULE_QUERIES
        return self.p_init / 2 ** sum(scaled > step for step in _HALVED_AFTER)

    def _validate(self) -> None:
        super()._validate()
        if not (is_number(self.p_init) and 0 < self.p_init <= 1):
            raise ValueError(f"Square: p_init must be above 0 and at most 1; got {self.p_init!r}")


class _Counting(Square):
    """Keeps the counts of each batch."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.counts: list[Tensor] = []

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        found, n_queries = self._search(objective, ball, y, seed, stop_when_broken)
        self.counts.append(n_queries)
        return found

    def _accelerates(self, stop_when_broken: bool) -> bool:
        return False  # nothing is done twice then, and each query is one of the module itself
