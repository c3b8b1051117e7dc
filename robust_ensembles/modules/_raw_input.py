"""An ensemble behind X as the user has it."""

import torch
from torch import Tensor, nn

from .ensemble import Ensemble


class RawInput(nn.Module):
    """From raw X (flat rows, uint8, any float) to log mean probabilities.

    What `as_module` returns, and what any attack library takes.

    Parameters
    ----------
    ensemble : Ensemble
        Shared, not copied.
    input_shape : tuple of int
        Shape of one sample as the members take it.
    clip_values : tuple of two floats, default=None
        Box of the data, for attacks.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        input_shape: tuple[int, ...],
        clip_values: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.input_shape = input_shape
        self.clip_values = clip_values

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (n_members, n_samples, n_classes)."""
        return self.ensemble.member_logits(self._prepare(x))

    def forward(self, x: Tensor) -> Tensor:
        """Log mean probabilities, (n_samples, n_classes)."""
        log_proba: Tensor = self.ensemble(self._prepare(x))
        return log_proba

    def _prepare(self, x: Tensor) -> Tensor:
        scaled = x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x
        dtype = next(self.ensemble.parameters()).dtype
        return scaled.to(dtype).reshape(x.shape[0], *self.input_shape)
