"""LeNet-5 in the size that ensemble-robustness papers use on 28 x 28 images."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import (
    NormalizeParam,
    check_input_shape,
    check_size,
    make_activation,
    make_embedding,
    make_normalize,
)

# below 16 pixels, two valid 5 x 5 convolutions with pooling leave no pixel
_MIN_VALID, _MIN_SAME = 16, 4


class LeNet5(nn.Module):
    """LeNet-5 [1]_ with 20 and 50 feature maps and 500 hidden units.

    The layers are: 5 x 5 convolution to 20 maps, 2 x 2 max pooling, 5 x 5 convolution to 50
    maps, 2 x 2 max pooling, linear to 500, optionally linear to `embedding_size`, linear to
    `n_classes`, with the activation after each but the last. Images of 16 x 16 pixels or more
    are convolved without padding; smaller ones, whose maps would vanish, with a padding of 2
    (so that a convolution keeps the size), down to 4 x 4 pixels.

    Parameters
    ----------
    input_shape : tuple of int (channels, height, width)
        Shape of one image; any number of channels.
    n_classes : int
        Number of outputs (logits).
    embedding_size : int or None, default=None
        Units of an extra hidden layer, `embedding`, before the classifier; None for none.
        64 gives the 20-50-500-64-10 network of the label-distribution ensemble methods.
    activation : {"relu", "leaky_relu"}, default="relu"
        Activation; the leaky ReLU has slope 0.1.
    normalize : None or (mean, std), default=None
        If given, a `Normalize` layer comes first.

    Attributes
    ----------
    features : nn.Sequential
        Convolutions, pooling, and the layer of 500 units.
    embedding : nn.Linear
        Layer of `embedding_size` units, if given.
    classifier : nn.Linear
        Last layer.

    Raises
    ------
    ValueError, TypeError
        If a parameter is not as described, or an image has fewer than 4 rows or columns.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
       document recognition", Proceedings of the IEEE 86(11), 1998.

    Examples
    --------
    >>> import torch
    >>> from robust_ensembles.modules import LeNet5
    >>> LeNet5((1, 28, 28), n_classes=10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        *,
        embedding_size: int | None = None,
        activation: str = "relu",
        normalize: NormalizeParam = None,
    ) -> None:
        super().__init__()
        channels, height, width = check_input_shape(input_shape, owner="LeNet5", images=True)
        if min(height, width) < _MIN_SAME:
            raise ValueError(
                f"LeNet5 needs images of 4 x 4 pixels or more, got {height} x {width}; use MLP"
            )
        self.normalize = make_normalize(normalize, channels)
        self.features = _make_features(channels, height, width, activation)
        n_features = 500
        self.embedding: nn.Linear | None = None
        if embedding_size is not None:
            self.embedding = make_embedding(n_features, embedding_size)
            n_features = self.embedding.out_features
        self.embedding_activation = make_activation(activation)
        self.classifier = nn.Linear(n_features, check_size(n_classes, "n_classes"))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Parameters
        ----------
        x : Tensor of shape (n, channels, height, width)
            Batch of images.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits.
        """
        features = self.features(self.normalize(x))
        if self.embedding is not None:
            features = self.embedding_activation(self.embedding(features))
        logits: Tensor = self.classifier(features)
        return logits


def _make_features(channels: int, height: int, width: int, activation: str) -> nn.Sequential:
    """Layers from the image to the 500 hidden units, activation included."""
    padding = 0 if min(height, width) >= _MIN_VALID else 2
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5, padding=padding),
        make_activation(activation),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5, padding=padding),
        make_activation(activation),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * _map_size(height, padding) * _map_size(width, padding), 500),
        make_activation(activation),
    )


def _map_size(size: int, padding: int) -> int:
    """Rows (or columns) of the maps after the second pooling."""
    for _ in range(2):
        size = (size + 2 * padding - 4) // 2
    return size
