"""An ensemble of networks as one module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .combiners import MEAN_PROBABILITY, Combiner


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged.

    Parameters
    ----------
    members : sequence of nn.Module
        One or more networks that map (n, ...) to logits of shape (n, n_classes), all with
        the same `n_classes`. They are not copied.

    Attributes
    ----------
    members : nn.ModuleList
        The networks.
    combiner : Combiner
        Combines their outputs by the mean probability.

    Raises
    ------
    ValueError
        If there are no members.
    TypeError
        If a member is not an nn.Module.

    Examples
    --------
    >>> import torch
    >>> from robust_ensembles.modules import MLP, Ensemble
    >>> ensemble = Ensemble([MLP((4,), 3), MLP((4,), 3)])
    >>> ensemble(torch.zeros(5, 4)).shape, len(ensemble)
    (torch.Size([5, 3]), 2)
    """

    # a class attribute, so that ensembles pickled before combiners existed have it too
    combiner: Combiner = MEAN_PROBABILITY

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        members = list(members)
        if not members:
            raise ValueError("members is empty; an Ensemble needs one network or more")
        for i, member in enumerate(members):
            if not isinstance(member, nn.Module):
                raise TypeError(
                    f"members[{i}] must be an nn.Module, got {member!r}; "
                    f"build networks from classes or names with build_members"
                )
        self.members = nn.ModuleList(members)

    def member_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the logits of each member.

        Parameters
        ----------
        x : Tensor of shape (n, ...), or sequence of n_members of them
            One batch of samples for all members, or one for each.

        Returns
        -------
        Tensor of shape (n_members, n, n_classes)
            Logits, with the members on the first axis.
        """
        inputs = [x] * len(self) if isinstance(x, Tensor) else x
        return torch.stack([member(x) for member, x in zip(self.members, inputs, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logarithm of the mean of the members' probabilities.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Batch of samples.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Log-probabilities. They are also valid logits: their softmax is the mean probability.
        """
        return self.combiner.log_proba(self.member_logits(x))

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.members)

    def __getitem__(self, index: int) -> nn.Module:
        return self.members[index]


class RawInput(nn.Module):
    """Maps raw X (flat rows, uint8, any float) to log mean probabilities.

    Returned by `as_module`, for any attack library.

    Parameters
    ----------
    ensemble : Ensemble
        Shared, not copied.
    input_shape : tuple of int
        Shape of one sample, as passed to the members.
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

    @property
    def combiner(self) -> Combiner:
        """The combiner of the ensemble."""
        return self.ensemble.combiner

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
