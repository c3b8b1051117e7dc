"""Per-channel normalisation as the first layer of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    As a layer of the network, the normalisation is inside what an attack differentiates, so
    inputs, their bounds and `eps` all stay in the scale of the data.

    Parameters
    ----------
    mean : float or sequence of float
        Mean of each channel, in the scale of the input; one number serves all channels.
    std : float or sequence of float
        Standard deviation of each channel, above 0; one number serves all channels.

    Attributes
    ----------
    mean, std : Tensor of shape (n_channels,)
        Buffers: they move with the module and are in its ``state_dict``.

    Raises
    ------
    ValueError
        If a value is not finite, a `std` is not above 0 or the lengths of `mean` and `std`
        do not agree; from the forward pass, if the input has another number of channels.

    Examples
    --------
    >>> import torch
    >>> from robust_ensembles.modules import Normalize
    >>> Normalize(0.5, 0.25)(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        mean_values, std_values = _as_vector(mean, "mean"), _as_vector(std, "std")
        if not bool((std_values > 0).all()):
            raise ValueError(f"std must be above 0 in every channel, got {std!r}")
        sizes = {len(mean_values), len(std_values)} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"mean has {len(mean_values)} channels and std has {len(std_values)}; "
                f"give both the same length, or one number for all channels"
            )
        device = torch.empty(0).device  # get_default_device of torch 2.6 misses the context
        self.register_buffer("mean", mean_values.to(device))
        self.register_buffer("std", std_values.to(device))

    @property
    def n_channels(self) -> int:
        """Channels that the layer expects; 1 means any number."""
        return max(len(self.mean), len(self.std))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch.

        Parameters
        ----------
        x : Tensor of shape (n, channels, ...)
            Images, or features of shape (n, n_features).

        Returns
        -------
        Tensor of the shape of `x`
            ``(x - mean) / std``.
        """
        # Without this check, broadcasting would silently turn one channel into several.
        if x.ndim < 2 or self.n_channels not in (1, x.shape[1]):
            raise ValueError(
                f"Normalize has {self.n_channels} channels, but its input has shape "
                f"{tuple(x.shape)}; the channels must be on axis 1"
            )
        trailing = (1,) * (x.ndim - 2)
        return (x - self.mean.view(1, -1, *trailing)) / self.std.view(1, -1, *trailing)

    def extra_repr(self) -> str:
        """Mean and standard deviation, for ``repr``."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


def _as_vector(values: float | Sequence[float], name: str) -> Tensor:
    """Return one or more numbers as a finite vector of the default float dtype."""
    try:
        # Through Python floats, so that NumPy arrays and integers come out in the same dtype.
        items = [float(v) for v in values] if isinstance(values, Iterable) else [float(values)]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a number or a flat sequence of numbers, got {values!r}"
        ) from error
    # The checks look at values, which the default device may not have (meta).
    vector = torch.tensor(items, dtype=torch.get_default_dtype(), device="cpu")
    if not items or not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must hold one or more finite numbers, got {values!r}")
    return vector
