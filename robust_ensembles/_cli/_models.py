"""Models of the command line: fitted ensembles from files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..estimators import BaseEnsembleClassifier
from ..estimators._components import resolve_device
from ..persistence import load
from ._console import tell
from ._data import Images, check_fits


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
        check_fits(models[name], images, str(path))
        _warn_of_other_split(models[name], path, args)
    return models


def load_surrogates(args: argparse.Namespace) -> Any:
    """What transferred attacks are made on, or None."""
    if args.surrogate is None:
        return None
    loaded = [load_model(path, args.device) for path in args.surrogate]
    return loaded if len(loaded) > 1 else loaded[0]


def _warn_of_other_split(
    model: BaseEnsembleClassifier, path: Path, args: argparse.Namespace
) -> None:
    if args.test_size is not None and model.random_state != args.seed:
        tell(
            f"warning: {path} was trained with seed {model.random_state}, so --seed {args.seed} "
            "may hold out images that it was trained on"
        )
