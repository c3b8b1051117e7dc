"""`WorstCase`, the per-sample worst case over several attacks, and `UniformNoise`, a control."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import _registry
from .._parameters import count, param
from .base import Attack, BoundedAttack
from .engine.ascent import Objective, is_broken
from .engine.balls import Ball, Box
from .engine.noise import RESTART_SHIFT
from .engine.target import check_batch


@_registry.attack(
    "noise",
    kind="no gradients",
    summary="random points of the ball: a control that a gradient attack must beat",
    count="n_draws",
)
@dataclass(kw_only=True, repr=False, eq=False)
class UniformNoise(BoundedAttack):
    """Uniform noise in the ball: a control that a gradient attack must beat.

    Parameters
    ----------
    n_draws : int, default=10
        Random points tried for each sample.
    """

    n_draws: int = param(10, count())

    @property
    def gradient_free(self) -> bool:
        """True: the attack uses decisions only."""
        return True

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        result = ball.random_point(seed)
        if not stop_when_broken:
            return result
        clean = ball.project(ball.x)
        already = objective.broken(clean, y)
        result[already] = clean[already]
        active = (~already).nonzero().squeeze(1)
        for draw in range(self.n_draws):
            if not len(active):
                break
            part = ball[active]
            result[active] = part.random_point(seed + (draw << RESTART_SHIFT))
            active = active[~objective.broken(result[active], y[active])]
        return result


@_registry.attack(
    None,
    kind="several",
    summary="a sample is broken if any of several attacks breaks it: `worst` in scores and reports",
)
@dataclass(repr=False, eq=False)
class WorstCase(Attack):
    """Per-sample worst case: a sample is broken if any of the attacks breaks it.

    Each attack runs on the samples not broken by those before it, so put cheap ones first.

    Parameters
    ----------
    attacks : sequence of Attack
        At least one, each with its own parameters, all with the same `targeted`.
    """

    attacks: Sequence[Attack]

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        """Whether the attacks are targeted."""
        return any(attack.targeted for attack in self.attacks)

    @property
    def gradient_free(self) -> bool:
        """Whether none of the attacks needs gradients."""
        return all(attack.gradient_free for attack in self.attacks)

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module; see `Attack`."""
        self._validate()
        y = check_batch(module, X, y, self._box(module))
        if not stop_when_broken:
            raise ValueError("WorstCase needs stop_when_broken=True: it looks at every decision")
        makers = [partial(attack, module) for attack in self.attacks]
        everyone = torch.arange(len(X), device=X.device)
        return first_success(makers, module, X, y, everyone, targeted=self.targeted)

    def _box(self, module: nn.Module) -> Box | None:
        return self.attacks[0]._box(module)

    def check_classes(self, classes: NDArray[Any]) -> None:
        """Check the classes of each attack; see `Attack`."""
        for attack in self.attacks:
            attack.check_classes(classes)

    def _validate(self) -> None:
        super()._validate()
        if not isinstance(self.attacks, Sequence) or not self.attacks:
            raise ValueError(
                "WorstCase: attacks must be a list of at least one attack, as [FGSM(), PGD()]; "
                f"got {self.attacks!r}"
            )
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"WorstCase: {attack!r} is no attack of robust_ensembles.attacks")
            attack._validate()
        if len({attack.targeted for attack in self.attacks}) > 1:
            raise ValueError("WorstCase: attacks must be all targeted or all untargeted")


def first_success(
    makers: Iterable[Callable[[Tensor, Tensor], Tensor]],
    module: nn.Module,
    X: Tensor,
    y: Tensor,
    active: Tensor,
    *,
    targeted: bool,
) -> Tensor:
    """Make examples by one function after the other, each on the samples not yet broken.

    Parameters
    ----------
    makers : iterable of callables
        Each takes X and y and returns examples.
    module : nn.Module
        The module whose decisions count.
    X : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
    active : int64 Tensor of shape (n_active,)
        Indices of the samples to attack; the others are left unchanged.
    targeted : bool

    Returns
    -------
    X_adv : Tensor of the shape of X
        The first example that breaks a sample, or the last.
    """
    result = X.detach().clone()
    for make in makers:
        if not len(active):
            break
        result[active] = make(X[active], y[active])
        active = active[~is_broken(module, result[active], y[active], targeted=targeted)]
    return result
