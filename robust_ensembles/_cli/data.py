"""DATA of the command line: images to train on and images to hold out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from ..datasets import (
    load_cifar10,
    load_cifar100,
    load_digits_images,
    load_fashion_mnist,
    load_image_folder,
    load_image_npz,
    load_mnist,
)
from ..datasets.npz import splits_of
from ..estimators import BaseEnsembleClassifier
from ..estimators.parameters import resolve_device
from ..exceptions import DatasetNotFoundError
from ..persistence import load
from ..recipes import known_dataset
from .output import tell
from .threat import PIXELS

DEFAULT_TEST_SIZE = 0.2

_LOADERS: dict[str, Callable[[str], tuple[NDArray[Any], NDArray[Any]]]] = {
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}


@dataclass(frozen=True)
class Images:
    """Labelled images with a description.

    Parameters
    ----------
    X : ndarray of shape (n, channels, height, width)
    y : ndarray of shape (n,)
    about : str
    words : tuple of str
        Arguments with which `evaluate` reads the same images.
    """

    X: NDArray[Any]
    y: NDArray[Any]
    about: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """An existing data source; `parts` is empty if it has no train and test parts."""

    name: str
    parts: list[str]
    load: Callable[[str], tuple[NDArray[Any], NDArray[Any]]]
    words: tuple[str, ...]

    @property
    def has_test(self) -> bool:
        return "test" in self.parts

    def read(self, part: str) -> Images:
        which = f"the {part} part of {self.name}" if self.parts else self.name
        return Images(*self.load(part), which, self.words)


def read_for_training(args: argparse.Namespace) -> tuple[Images, Images]:
    """Images to train on, and images to measure on.

    Parameters
    ----------
    args : Namespace
        With `data`, `test`, `test_size`, `seed`, `size` and `grey`.

    Returns
    -------
    training, held_out : Images
    """
    if args.test is not None and args.test_size is not None:
        raise ValueError("give --test or --test-size, not both")
    source = _open(args.data, args)
    if args.test is not None:
        other = _open(args.test, args)
        return source.read("train"), other.read("test" if other.has_test else "train")
    if source.has_test and args.test_size is None:
        return source.read("train"), source.read("test")
    return _split(source.read("train"), args)


def read_for_measuring(args: argparse.Namespace) -> tuple[Images, str | None]:
    """Images to measure on, and the reason, if any, why a model may have been trained on them.

    Parameters
    ----------
    args : Namespace
        With `data`, `test_size`, `seed`, `samples`, `size` and `grey`.

    Returns
    -------
    images : Images
    doubt : str or None
        None if training never uses them.
    """
    source = _open(args.data, args)
    if args.test_size is not None:
        images = _split(source.read("train"), args)[1]
    else:
        images = source.read("test" if source.has_test else "train")
    return _drawn(images, args.samples, args.seed), _doubt(source, args.test_size)


def _doubt(source: _Source, size: float | None) -> str | None:
    if not source.has_test and size is None:
        return (
            f"{source.name} has no test part, so all of it is taken. If a model was trained on "
            "some of it, the numbers are too high; --test-size and --seed as in its training take "
            "what was held out"
        )
    if source.has_test and size is not None:
        return (
            f"{source.name} has a test part, and only a training with --test-size {size!r} held "
            "these images out. A model trained without it was trained on them, and its numbers are "
            "too high; without --test-size, the test part is taken"
        )
    return None


def check_fits(model: BaseEnsembleClassifier, images: Images, name: str) -> None:
    """Raise for images of another shape than the model's, or labels that it does not know.

    Parameters
    ----------
    model : BaseEnsembleClassifier
        Fitted.
    images : Images
    name : str
        Of the model, for the message.
    """
    shape = images.X.shape[1:]
    if shape != tuple(model.input_shape_):
        raise ValueError(
            f"{images.about}: images of shape {shape}, but {name} was trained on "
            f"{tuple(model.input_shape_)} (channels, height, width). For a folder give --size and "
            "--grey as in the training"
        )
    check_labels(images, model.classes_, name)


def check_labels(images: Images, classes: NDArray[Any], name: str) -> None:
    """Raise for labels that are not among the classes of the model called `name`."""
    known = set(classes.tolist())
    unknown = sorted({label for label in images.y.tolist() if label not in known}, key=str)
    if unknown:
        raise ValueError(
            f"{images.about}: labels {unknown[:5]}, of which {name} knows nothing; it knows "
            f"{classes.tolist()[:10]}"
        )


def _open(data: str, args: argparse.Namespace) -> _Source:
    path, name = Path(data), data.lower()
    of_folder = [f"--size {args.size}"] * (args.size is not None) + ["--grey"] * args.grey
    if path.is_dir() and name not in ("digits", *_LOADERS):
        words = (data, *(word for option in of_folder for word in option.split()))
        return _Source(data, [], lambda _: _load_folder(path, args), words)
    if of_folder:
        raise ValueError(f"{' and '.join(of_folder)}: for a folder of images only, not for {data}")
    if path.suffix == ".npz":
        return _Source(data, splits_of(path), lambda part: load_image_npz(path, part), (data,))
    if name == "digits":
        return _Source(name, [], lambda _: load_digits_images(), (data,))
    if path.suffix == ".safetensors" and path.is_file():
        raise ValueError(f"{data} is a model, not images: MODEL comes before DATA")
    try:
        name = known_dataset(data)
    except ValueError:
        raise DatasetNotFoundError(
            f"{data!r} is neither a folder, nor a .npz file, nor one of "
            f"{', '.join(['digits', *_LOADERS])}"
        ) from None
    return _Source(name, ["train", "test"], _LOADERS[name], (data,))


def _load_folder(path: Path, args: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any]]:
    X, y = load_image_folder(path, size=args.size, grey=args.grey)
    if not args.grey and (X[:, :1] == X).all():
        tell(f"note: all images of {path} are grey: --grey makes one channel of their three")
    return X, y


def _split(images: Images, args: argparse.Namespace) -> tuple[Images, Images]:
    """The part that is kept, and the part that is held out."""
    size = DEFAULT_TEST_SIZE if args.test_size is None else args.test_size
    try:
        kept, held = train_test_split(
            np.arange(len(images.y)), test_size=size, stratify=images.y, random_state=args.seed
        )
    except ValueError as error:
        raise ValueError(
            f"{images.about}: {size:g} of {len(images.y)} images cannot be held out with equal "
            f"shares of each class: {error}"
        ) from error
    words = (*images.words, "--test-size", repr(size), "--seed", str(args.seed))
    about = f"{100 * size:g}% of {images.about}, held out with seed {args.seed}"
    rest = f"the other {100 - 100 * size:g}% of {images.about}"
    training = Images(images.X[kept], images.y[kept], rest, images.words)
    return training, Images(images.X[held], images.y[held], about, words)


def _drawn(images: Images, n: int | None, seed: int) -> Images:
    """A random subset of `n` images, in their order: a folder's first images share one class."""
    if n is None or n >= len(images.y):
        return images
    rows = np.sort(np.random.default_rng(seed).choice(len(images.y), n, replace=False))
    about = f"{n} of {len(images.y)} images, drawn with seed {seed}, from {images.about}"
    return replace(images, X=images.X[rows], y=images.y[rows], about=about)


def load_model(path: Path, device: str | None) -> BaseEnsembleClassifier:
    """A fitted ensemble on the requested device, which must exist."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; MODEL is a file that train wrote")
    if device is None:
        return load(path)
    resolve_device(device)
    return load(path, device=device)


def load_models(
    paths: Iterable[Path], images: Images, args: argparse.Namespace
) -> dict[str, BaseEnsembleClassifier]:
    """Ensembles by file name, checked to fit the images."""
    paths = list(paths)
    stems = [path.stem for path in paths]
    models: dict[str, BaseEnsembleClassifier] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else str(path)
        if name in models:
            raise ValueError(f"{path} is given twice")
        models[name] = load_model(path, args.device)
        _check_pixels(models[name], path)
        check_fits(models[name], images, str(path))
        _warn_of_other_split(models[name], path, args)
    return models


def load_surrogates(
    models: Mapping[str, BaseEnsembleClassifier], images: Images, args: argparse.Namespace
) -> Any:
    """Models to make transferred examples on, with the same classes as `models`; or None."""
    if args.surrogate is None:
        return None
    loaded = []
    for path in args.surrogate:
        surrogate = load_model(path, args.device)
        _check_pixels(surrogate, path)
        check_fits(surrogate, images, f"the surrogate {path}")
        for name, model in models.items():
            if not np.array_equal(surrogate.classes_, model.classes_):
                raise ValueError(
                    f"the surrogate {path} knows the classes {surrogate.classes_.tolist()[:10]}, "
                    f"{name} {model.classes_.tolist()[:10]}: train both on the same labels"
                )
        loaded.append(surrogate)
    return loaded if len(loaded) > 1 else loaded[0]


def _check_pixels(model: BaseEnsembleClassifier, path: Path) -> None:
    """Raise for a model trained on another pixel range, where eps has another meaning."""
    box = model.clip_values_
    if box is None or tuple(box) != PIXELS:
        raise ValueError(
            f"{path} was trained with clip_values={box}, but the commands give pixels from 0 to 1: "
            "measure it in Python, on X as in its training"
        )


def _warn_of_other_split(
    model: BaseEnsembleClassifier, path: Path, args: argparse.Namespace
) -> None:
    if args.test_size is not None and model.random_state != args.seed:
        tell(
            f"warning: {path} was trained with seed {model.random_state}, so --seed {args.seed} "
            "may hold out images that it was trained on"
        )
