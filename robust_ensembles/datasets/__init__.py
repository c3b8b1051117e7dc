"""Image data sets as NumPy arrays ``(X, y)`` with the channels on axis 1.

The loaders return pixels as uint8, 0 to 255, which the estimators scale to [0, 1], except
`load_digits_images`, whose pixels are float32 in [0, 1]. The package contains no data.
"""

from .cifar import load_cifar10, load_cifar100
from .digits import load_digits_images
from .folder import load_image_folder
from .mnist import load_fashion_mnist, load_mnist
from .npz import load_image_npz

__all__ = [
    "load_cifar10",
    "load_cifar100",
    "load_digits_images",
    "load_fashion_mnist",
    "load_image_folder",
    "load_image_npz",
    "load_mnist",
]
