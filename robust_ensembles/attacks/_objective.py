"""What a gradient attack asks of a module: the gradient of its loss, and who is broken."""

import torch
from torch import Tensor, nn

from ..losses import ensemble_log_proba
from ._ascent import Climbable
from ._margins import LOSSES, member_logits
from ._mode import untouched


class Objective(Climbable):
    """A module seen by an attack.

    Parameters
    ----------
    module : nn.Module
    loss : str
        A key of `LOSSES`.
    targeted : bool
        Whether labels are to be reached (their loss descends) instead of left.
    """

    def __init__(self, module: nn.Module, loss: str, *, targeted: bool = False) -> None:
        self.module, self.targeted = module, targeted
        self._loss = LOSSES[loss]

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's loss, upwards, and whether the sample is broken."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = member_logits(self.module, x)
            loss = self._loss(logits, y).sum()
            (gradient,) = torch.autograd.grad(-loss if self.targeted else loss, x)
        return gradient, self._broken(logits.detach(), y)

    @torch.no_grad()
    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the deployed decision, argmax of the mean probability, is the attacker's."""
        return self._broken(member_logits(self.module, x), y)

    def _broken(self, logits: Tensor, y: Tensor) -> Tensor:
        hit = ensemble_log_proba(logits).argmax(dim=1) == y
        return hit if self.targeted else ~hit


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device of a module's first parameter, or the default for a module without any."""
    return next((parameter.device for parameter in module.parameters()), default)


def is_broken(
    module: nn.Module, X: Tensor, y: Tensor, *, targeted: bool = False, batch_size: int = 512
) -> Tensor:
    """Whether each sample is decided as an attacker wants, by an eval-mode pass of its own.

    Parameters
    ----------
    module : nn.Module
    X : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices, the targets if `targeted`.
    targeted : bool, default=False
    batch_size : int, default=512

    Returns
    -------
    broken : bool Tensor of shape (n_samples,)
        On the device of X.
    """
    device = device_of(module, X.device)
    objective = Objective(module, "margin", targeted=targeted)
    parts = zip(X.split(batch_size), y.split(batch_size), strict=True)
    with untouched(module):
        decided = [objective.broken(x.to(device), labels.to(device)) for x, labels in parts]
    return torch.cat(decided).to(X.device) if decided else torch.zeros(0, dtype=torch.bool)
