"""Multilayer perceptron for inputs of any shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from .layers import NormalizeParam, check_input_shape, check_size, make_activation, make_normalize


class MLP(nn.Module):
    """Fully connected network on the flattened input.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one sample, without the batch axis; any number of axes.
    n_classes : int
        Number of outputs (logits).
    hidden_sizes : sequence of int, default=(64, 64)
        Units of each hidden layer; empty for a linear model.
    activation : {"relu", "leaky_relu"}, default="relu"
        Activation after each hidden layer; the leaky ReLU has slope 0.1.
    normalize : None or (mean, std), default=None
        If given, a `Normalize` layer comes first; for flat inputs it works feature by feature.

    Attributes
    ----------
    features : nn.Sequential
        Hidden layers with their activations.
    classifier : nn.Linear
        Last layer.

    Raises
    ------
    ValueError, TypeError
        If a parameter is not as described.

    Examples
    --------
    >>> import torch
    >>> from robust_ensembles.modules import MLP
    >>> MLP((20,), n_classes=3)(torch.zeros(5, 20)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "relu",
        normalize: NormalizeParam = None,
    ) -> None:
        super().__init__()
        shape = check_input_shape(input_shape, owner="MLP")
        if isinstance(hidden_sizes, str) or not isinstance(hidden_sizes, Sequence):
            raise TypeError(f"hidden_sizes must be a tuple such as (64, 64), got {hidden_sizes!r}")
        self.normalize = make_normalize(normalize, shape[0])
        sizes = [
            math.prod(shape),
            *(check_size(size, "each of hidden_sizes") for size in hidden_sizes),
        ]
        make_activation(activation)  # refuses a wrong name even where there is no hidden layer
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), make_activation(activation)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], check_size(n_classes, "n_classes"))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Parameters
        ----------
        x : Tensor of shape (n, `*input_shape`)
            Batch of samples.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits.
        """
        logits: Tensor = self.classifier(self.features(self.normalize(x).flatten(1)))
        return logits
