"""`External`: attacks of other libraries, with the checks of this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _registry
from .._parameters import flag, param
from .base import BoundedAttack
from .engine.ascent import Objective
from .engine.balls import Ball

# how far rounding may move another library's examples out of the ball, as a fraction of eps
_SLACK = 1e-3


class _Deployed(nn.Module):
    """A module that returns only log-probabilities, as other libraries expect."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return output


@_registry.attack(
    None,
    kind="other libraries",
    summary="any function of a model, images and labels, such as another library's attack",
    from_parameters=False,
)
@dataclass(kw_only=True, repr=False, eq=False)
class External(BoundedAttack):
    """Any attack that is a function of a model, images and labels, such as another library's.

    The function is called with a module in eval mode with frozen parameters, which returns
    log-probabilities (valid logits). Its result is checked against the ball and the box and, within
    rounding, projected into them. The state of the global random generators is restored.

    Parameters
    ----------
    function : callable
        ``function(module, x, y) -> x_adv``, on tensors.
    eps : float, default=8/255
        Radius of the ball that the function stays in.
    seed_everything : bool, default=True
        Whether to seed torch's global generator from `random_state` for each batch, so that the
        function is reproducible. Its state is restored afterwards.

    Examples
    --------
    >>> from robust_ensembles.attacks import External
    >>> def gray(module, x, y):
    ...     return x.clamp(0.4, 0.6)
    >>> attack = External(function=gray, eps=0.5)
    """

    function: Callable[[nn.Module, Tensor, Tensor], Any]
    eps: float = 8 / 255
    seed_everything: bool = param(True, flag())

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        x = ball.project(ball.x)
        active = torch.arange(len(y), device=y.device)
        if stop_when_broken:
            active = active[~objective.broken(x, y)]
        if not len(active):
            return x
        deployed = _Deployed(objective.module).eval()
        devices = [x.device] if x.device.type == "cuda" else []

        def make(x: Tensor, y: Tensor) -> tuple[Tensor]:
            with torch.random.fork_rng(devices, enabled=self.seed_everything), torch.enable_grad():
                if self.seed_everything:
                    torch.manual_seed(seed)
                made = self.function(deployed, x.clone(), y)
            return (self._checked_shape(made, x),)

        result = x.clone()
        made = objective.minibatches.map(make, x[active], y[active])[0]
        result[active] = self._checked(made, ball[active])
        return result

    def _accelerates(self, stop_when_broken: bool) -> bool:
        return False  # the function may copy the module, or look into it

    @staticmethod
    def _checked_shape(made: Any, x: Tensor) -> Tensor:
        if not isinstance(made, Tensor | np.ndarray):
            raise ValueError(
                f"External: the function returned a {type(made).__name__}; it must return a "
                "tensor or an array"
            )
        made = torch.as_tensor(made).detach().to(x)
        if made.shape != x.shape:
            raise ValueError(
                f"External: the function returned shape {tuple(made.shape)} for x of shape "
                f"{tuple(x.shape)}; it must return one example for each sample"
            )
        return made

    def _checked(self, made: Tensor, ball: Ball) -> Tensor:
        """Check the function's result, and project it into the ball and the box."""
        if not made.isfinite().all():
            raise ValueError("External: the function returned NaN or infinity")
        excess = float((ball.length(made - ball.x) - self.eps).max())
        if excess > _SLACK * max(self.eps, _SLACK):
            raise ValueError(
                f"External: the function left the {self.norm} ball of eps={self.eps:g} by "
                f"{excess:.3g}; give it the same eps, in the units of X, or set eps here to the "
                "radius that it uses"
            )
        return ball.project(made)

    def _validate(self) -> None:
        super()._validate()
        if not callable(self.function):
            raise TypeError(
                f"External: function must be callable as function(module, x, y); "
                f"got {self.function!r}"
            )
