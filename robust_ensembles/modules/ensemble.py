"""Ensemble of networks as one module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..losses import ensemble_log_proba


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged.

    Parameters
    ----------
    members : sequence of nn.Module
        One or more networks that map (n, ...) to logits of shape (n, n_classes), all with
        the same `n_classes`. They are kept, not copied.

    Attributes
    ----------
    members : nn.ModuleList
        The networks.

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
            Batch of samples that all members see, or one for each.

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
            Log-probabilities. As logits they are valid too: their softmax is the mean
            probability.
        """
        return ensemble_log_proba(self.member_logits(x))

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.members)

    def __getitem__(self, index: int) -> nn.Module:
        return self.members[index]
