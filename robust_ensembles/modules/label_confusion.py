"""The label confusion model that CLDL trains beside its members."""

import torch
from torch import Tensor, nn


class LabelConfusionModel(nn.Module):
    r"""Similarities of the labels to an embedding, as a distribution over classes.

    .. math:: \mathrm{Vec} = \tanh(\mathrm{Linear}(E)), \qquad u = \mathrm{Vec}\, v, \qquad
              c = \mathrm{softmax}(\mathrm{Linear}(u))

    Parameters
    ----------
    n_classes : int
    embedding_size : int
        Size of the members' embeddings v, and of each row of the table E.
    """

    def __init__(self, n_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.labels = nn.Embedding(n_classes, embedding_size)
        self.project = nn.Linear(embedding_size, embedding_size)
        self.confuse = nn.Linear(n_classes, n_classes)

    def forward(self, v: Tensor) -> Tensor:
        """Label confusion vectors.

        Parameters
        ----------
        v : Tensor of shape (..., embedding_size)

        Returns
        -------
        c : Tensor of shape (..., n_classes)
        """
        vectors = torch.tanh(self.project(self.labels.weight))
        confusion: Tensor = self.confuse(v @ vectors.T).softmax(dim=-1)
        return confusion
