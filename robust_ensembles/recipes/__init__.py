"""Recipes: estimators with the settings published for a data set.

>>> from robust_ensembles import recipes
>>> clf = recipes.get("cldl", "fashion-mnist", device="cpu", random_state=0)
>>> clf.gamma, clf.alpha, clf.beta, clf.max_epochs, clf.lr_milestones
(3.0, 2.0, 4.0, 30, [10, 20])

`get` returns an unfitted estimator, `list` a table of all values with their sources. All ensembles
have the default three members, for which every source has results.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

import pandas as pd

from .. import _registry
from .._checks import one_of
from ..attacks import PGD
from ..estimators import EnsembleParameters
from ..estimators.base import BaseEnsembleClassifier
from .published import PUBLISHED

__all__ = ["DATASETS", "METHODS", "SOURCES", "get", "list"]

METHODS: dict[str, type[BaseEnsembleClassifier]] = {
    name: method.cls for name, method in _registry.methods().items()
}
"""Estimators by the name used in `get`."""

DATASETS = ("mnist", "fashion-mnist", "cifar10", "cifar100")
"""Names of the data sets."""

SOURCES = ("adp", "dverge", "trs", "fasten", "lafed", "cldl", "ncen", "ceat")
"""Sources of training settings: papers and their code, in the order of preference."""

_DATASET_OF = {name.replace("-", ""): name for name in DATASETS} | {"fmnist": "fashion-mnist"}


def get(
    method: str, dataset: str, *, source: str | None = None, **overrides: Any
) -> BaseEnsembleClassifier:
    """An unfitted estimator with the settings published for a data set.

    Parameters
    ----------
    method : str
        A key of `METHODS`, in any case, such as "vanilla", "adversarial", "cldl" or "CEAT".
    dataset : {"mnist", "fashion-mnist", "cifar10", "cifar100"}
        In any case, with or without hyphens or underscores; "F-MNIST" too.
    source : str, default=None
        Source of the training settings: network, optimizer, epochs, decay, batch size,
        augmentation. None is the method's own paper or code. If that has none for the data set, it
        is the first of `SOURCES` that trains the method on it: first the code of the older methods,
        then the papers that compare with them (CLDL, NCEn, CEAT). With "ceat", every method is
        trained adversarially, as in that paper.
    **overrides
        Parameters of the estimator, which override the recipe's: ``device="cpu"``,
        ``random_state=0``, ``formulation="released"``, also ``attack__n_steps=5`` or
        ``module__width=8``. With another `max_epochs`, the recipe's `lr_milestones` are scaled in
        proportion, unless they are given too.

    Returns
    -------
    estimator : BaseEnsembleClassifier

    Raises
    ------
    ValueError
        For unknown names, and if there are no published settings.

    Notes
    -----
    DVERGE, LAFED and FASTEN start from a vanilla ensemble if their code does: `pretrained` is then
    the recipe of that ensemble, with the overrides of network and training but with its own number
    of epochs. Give ``pretrained=10`` for a shorter pretraining.

    Examples
    --------
    >>> from robust_ensembles import recipes
    >>> recipes.get("ncen", "fashion-mnist").lr_milestones
    [15, 30]
    >>> recipes.get("ncen", "fashion-mnist", max_epochs=8).lr_milestones
    [3, 6]
    """
    block = _published(method, dataset, source)
    params = _constructor_params({name: value for name, (value, _) in block.items()})
    if "max_epochs" in overrides and params.get("lr_milestones"):
        params["lr_milestones"] = _scaled(
            params["lr_milestones"], params["max_epochs"], overrides["max_epochs"]
        )
    if params.get("pretrained") == "vanilla" and "pretrained" not in overrides:
        params["pretrained"] = get("vanilla", dataset, **_of_training(overrides))
    nested = {name: value for name, value in overrides.items() if "__" in name}
    plain = {name: value for name, value in overrides.items() if "__" not in name}
    kind = METHODS[method.lower()]
    unknown = sorted(set(plain) - set(kind._get_param_names()))
    if unknown:
        raise TypeError(f"{kind.__name__} has no parameters {unknown}; see its documentation")
    estimator = kind(**{**params, **plain})
    return estimator.set_params(**nested) if nested else estimator


def list() -> pd.DataFrame:
    """All values of all recipes, with their sources.

    Returns
    -------
    table : pandas.DataFrame
        A row for each value, with the columns

        - ``method``, ``dataset``, ``source``: arguments of `get`; the default source comes first;
        - ``parameter``: its name in `set_params`. ``module__``, ``optimizer__`` and ``attack__``
          are arguments of the network, of the optimizer and of the PGD attack in training;
        - ``value``;
        - ``tag``: "P" printed in one of the papers, "C" read in released code, "M" from memory of
          the original paper, "I" our inference, if the source does not state it or has not used
          the data set.

        Parameters that are not listed have the estimator's defaults. pandas prints six decimals:
        1e-7 looks like 0.0 unless ``pandas.options.display.precision`` is 7 or more.

    Examples
    --------
    >>> from robust_ensembles import recipes
    >>> table = recipes.list()
    >>> table[(table.method == "gpmr") & (table.parameter == "lambda_div")].tag.tolist()
    ['P', 'P', 'I']
    """
    rows = [
        (method, dataset, source, parameter, copy.deepcopy(value), tag)
        for method, datasets in PUBLISHED.items()
        for dataset, sources in datasets.items()
        for source, block in sources.items()
        for parameter, (value, tag) in block.items()
    ]
    columns = ["method", "dataset", "source", "parameter", "value", "tag"]
    return pd.DataFrame(rows, columns=columns)


def _published(method: str, dataset: str, source: str | None) -> Mapping[str, tuple[Any, str]]:
    """The requested block."""
    method = str(method).lower()
    one_of(method, METHODS, "method")
    dataset = known_dataset(dataset)
    sources = PUBLISHED[method].get(dataset, {})
    if source is not None:
        source = str(source).lower()
        one_of(source, SOURCES, "source")
    chosen = next(iter(sources), None) if source is None else source
    if chosen is None or chosen not in sources:
        by = "" if source is None else f" by source={source!r}"
        raise ValueError(
            f"there are no published settings for {method!r} on {dataset!r}{by}; there are "
            f"{_available(PUBLISHED[method])}"
        )
    return sources[chosen]


def known_dataset(dataset: str) -> str:
    """Return the name of a data set as in `DATASETS`, or raise a ValueError."""
    lowered = str(dataset).lower()
    name = _DATASET_OF.get(re.sub(r"[-_ ]", "", lowered), lowered)
    one_of(name, DATASETS, "dataset")
    return name


def _available(datasets: Mapping[str, Iterable[str]]) -> str:
    """Data sets with their sources, for a message."""
    return ", ".join(f"{name!r} ({', '.join(sources)})" for name, sources in datasets.items())


def _constructor_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the estimator, in which names with double underscores become components."""
    plain: dict[str, Any] = {}
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in copy.deepcopy(values).items():
        component, separator, key = name.partition("__")
        if separator:
            parts[component][key] = value
        else:
            plain[name] = value
    attack = parts.pop("attack", None)
    components = {f"{component}_params": params for component, params in parts.items()}
    return {**plain, **components, **({"attack": PGD(**attack)} if attack else {})}


def _of_training(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides for a recipe's vanilla ensemble: all but the number of epochs."""
    shared = {field.name for field in fields(EnsembleParameters)} - {"max_epochs", "lr_milestones"}
    parts = ("module", "optimizer")
    return {
        name: value
        for name, value in overrides.items()
        if name in shared or name.partition("__")[0] in parts
    }


def _scaled(milestones: Sequence[int], published: int, epochs: Any) -> Sequence[int] | None:
    """Milestones in proportion to another number of epochs; None if none is left."""
    if not isinstance(epochs, Integral):
        return milestones  # `fit` says what is wrong
    moved = {max(1, round(milestone * int(epochs) / published)) for milestone in milestones}
    return sorted(milestone for milestone in moved if milestone < int(epochs)) or None
