"""Models of the command line: fitted ensembles from files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..estimators import BaseEnsembleClassifier
from ..estimators._components import resolve_device
from ..persistence import load
from ._console import tell
from ._radius import PIXELS
from .data import Images, check_fits


def load_model(path: Path, device: str | None) -> BaseEnsembleClassifier:
    """A fitted ensemble, on the device that is asked for, which must be there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; MODEL is a file that train wrote")
    if device is None:
        return load(path)
    resolve_device(device)
    return load(path, device=device)


def load_models(
    paths: Iterable[Path], images: Images, args: argparse.Namespace
) -> dict[str, BaseEnsembleClassifier]:
    """Ensembles that can be measured on some images, by the names of their files."""
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
    """What transferred attacks are made on, which must know what the models know; or None."""
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
    """Raise for a model of other pixels than the commands give, for which eps means another."""
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
