"""The networks that NCEn's code trains."""

from __future__ import annotations

from torch import Tensor

from robust_ensembles.modules import CifarResNet


class SoftmaxInTraining(CifarResNet):
    """A ResNet that ends in a softmax while it is trained, and in logits afterwards.

    NCEn's code ends all of its members in a softmax and gives what they return to a
    cross-entropy that has one more. Trained weights are the same as there; in evaluation the
    members' logits are at hand, so that a protocol decides how many softmax an attack sees.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities in training mode, logits in evaluation mode."""
        logits: Tensor = super().forward(x)
        return logits.softmax(dim=-1) if self.training else logits
