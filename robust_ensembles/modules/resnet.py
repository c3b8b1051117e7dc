"""Residual networks for small images."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    NormalizeParam,
    activation_slope,
    check_input_shape,
    check_size,
    make_activation,
    make_embedding,
    make_normalize,
)


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a parameter-free shortcut (option A of He et al.)."""

    def __init__(self, n_in: int, n_out: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.act1 = make_activation(activation)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.residual_sum = nn.Identity()  # where hooks find the features before act2
        self.act2 = make_activation(activation)
        self.stride = stride
        self.extra_channels = n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the shortcut; neither is changed in place."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(self.residual_sum(residual + self._shortcut(x)))
        return out

    def _shortcut(self, x: Tensor) -> Tensor:
        """Subsample the pixels like the strided convolution, and add channels of zeros."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            front = self.extra_channels // 2
            x = F.pad(x, (0, 0, 0, 0, front, self.extra_channels - front))
        return x


class CifarResNet(nn.Module):
    """Residual network in the CIFAR style of He et al. [1]_, with option-A shortcuts.

    A 3 x 3 convolution and three stages of ``(depth - 2) / 6`` blocks with `width`,
    ``2 * width`` and ``4 * width`` channels, the last two starting with a stride of 2; then
    global average pooling and a linear classifier. Shortcuts have no parameters: where a
    stage widens, they are padded with zeros. Convolutions use Kaiming's normal initialisation.
    Because of the global pooling, the network accepts images of any size.

    Parameters
    ----------
    input_shape : tuple of int (channels, height, width)
        Shape of one image; any number of channels and any size.
    n_classes : int
        Number of outputs (logits).
    depth : int, default=20
        Number of weighted layers, ``6 n + 2`` for a whole `n` of 1 or more.
    width : int, default=16
        Channels of the first stage.
    embedding_size : int or None, default=None
        Units of an extra hidden layer, `embedding`, before the classifier; None for none.
    activation : {"relu", "leaky_relu"}, default="relu"
        Activation; the leaky ReLU has slope 0.1.
    normalize : None or (mean, std), default=None
        If given, a `Normalize` layer comes first.

    Attributes
    ----------
    stem, stages : nn.Sequential
        First convolution; residual blocks.
    embedding : nn.Linear
        Layer of `embedding_size` units, if given.
    classifier : nn.Linear
        Last layer.
    feature_layers : list of str
        Layers whose outputs methods such as DVERGE use as features.

    Raises
    ------
    ValueError, TypeError
        If a parameter is not as described.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition",
       CVPR 2016, section 4.2.

    Examples
    --------
    >>> from robust_ensembles.modules import CifarResNet
    >>> net = CifarResNet((3, 32, 32), n_classes=10, depth=20)
    >>> sum(p.numel() for p in net.parameters())
    269722
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        *,
        depth: int = 20,
        width: int = 16,
        embedding_size: int | None = None,
        activation: str = "relu",
        normalize: NormalizeParam = None,
    ) -> None:
        super().__init__()
        shape = check_input_shape(input_shape, owner=type(self).__name__, images=True)
        n_blocks = _blocks_per_stage(depth)
        width = check_size(width, "width")
        self.normalize = make_normalize(normalize, shape[0])
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            make_activation(activation),
        )
        self.stages = _make_stages(width, n_blocks, activation)
        n_in = 4 * width
        self.embedding: nn.Linear | None = None
        if embedding_size is not None:
            self.embedding = make_embedding(n_in, embedding_size)
            n_in = self.embedding.out_features
        self.embedding_activation = make_activation(activation)
        self.classifier = nn.Linear(n_in, check_size(n_classes, "n_classes"))
        self._init_convolutions(activation_slope(activation))

    @property
    def feature_layers(self) -> list[str]:
        """Layers with features, before their activation: 1 to `depth` in DVERGE's numbering."""
        blocks = range(len(self.stages))
        inner = [f"stages.{b}.{layer}" for b in blocks for layer in ("bn1", "residual_sum")]
        return ["stem.1", *inner, "classifier"]

    def _init_convolutions(self, slope: float) -> None:
        """Apply Kaiming's normal initialisation, with the gain of the activation."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=slope, nonlinearity="leaky_relu")

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
        features = self.stages(self.stem(self.normalize(x))).mean(dim=(2, 3))
        if self.embedding is not None:
            features = self.embedding_activation(self.embedding(features))
        logits: Tensor = self.classifier(features)
        return logits


class _FixedDepthResNet(CifarResNet):
    """`CifarResNet` with the depth fixed by the class."""

    _depth: ClassVar[int]

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        *,
        width: int = 16,
        embedding_size: int | None = None,
        activation: str = "relu",
        normalize: NormalizeParam = None,
    ) -> None:
        super().__init__(
            input_shape,
            n_classes,
            depth=self._depth,
            width=width,
            embedding_size=embedding_size,
            activation=activation,
            normalize=normalize,
        )


class ResNet20(_FixedDepthResNet):
    """`CifarResNet` of depth 20 (0.27 million parameters); see there for the arguments."""

    _depth = 20


class ResNet26(_FixedDepthResNet):
    """`CifarResNet` of depth 26 (0.37 million parameters); see there for the arguments."""

    _depth = 26


class ResNet32(_FixedDepthResNet):
    """`CifarResNet` of depth 32 (0.46 million parameters); see there for the arguments."""

    _depth = 32


class ResNet44(_FixedDepthResNet):
    """`CifarResNet` of depth 44 (0.66 million parameters); see there for the arguments."""

    _depth = 44


class ResNet56(_FixedDepthResNet):
    """`CifarResNet` of depth 56 (0.85 million parameters); see there for the arguments."""

    _depth = 56


def _blocks_per_stage(depth: int) -> int:
    """Blocks in each of the three stages of a network of `depth` layers."""
    n_blocks, rest = divmod(check_size(depth, "depth") - 2, 6)
    if rest or n_blocks < 1:
        raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, 26, 32, ...), got {depth}")
    return n_blocks


def _make_stages(width: int, n_blocks: int, activation: str) -> nn.Sequential:
    """Three stages of `n_blocks` blocks; the second and third halve the maps."""
    blocks: list[nn.Module] = []
    n_in = width
    for stage in range(3):
        n_out = width * 2**stage
        for block in range(n_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(_BasicBlock(n_in, n_out, stride, activation))
            n_in = n_out
    return nn.Sequential(*blocks)
