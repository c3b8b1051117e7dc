"""What a table needs: rows, and the models that they are measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robust_ensembles._plain import described
from robust_ensembles.protocols import cldl_split

from .. import _store
from . import _data, _methods
from ._budget import Budget
from ._methods import Method
from ._published import Column, PublishedTable, Setting

SURROGATES = (3, 5)
_SPLIT_IMAGES = 10_000
_TUNING_TABLES = ("XII", "XIII", "XIV")


class Model(NamedTuple):
    """An ensemble to train.

    Parameters
    ----------
    key : str
        Names it in the folder of models: by everything that decides its weights.
    estimator : unfitted estimator
    images : Images
        Those that it is trained on.
    """

    key: str
    estimator: Any
    images: _data.Images

    def load(self, models: Path, device: str) -> _store.Stored:
        """The trained one."""
        module = self.estimator.module
        own = not all(
            isinstance(m, str) for m in (module if isinstance(module, list) else [module])
        )
        params: dict[str, Any] = {"module": module} if own else {}
        return _store.load(models, self.key, device=device, **params)


@dataclass(frozen=True)
class Row:
    """A method in a table.

    Parameters
    ----------
    name : str
    method : Method or None
        None is not run.
    published : dict
        Percent by column; empty for an ablation.
    models : list of Model
        One for each seed.
    note : str
        Why it is not run, or what an ablation shows.
    """

    name: str
    method: Method | None
    published: dict[Column, float]
    models: list[Model] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Part:
    """The rows of a table that are compared with each other.

    Parameters
    ----------
    paper : str
    setting : Setting
    columns : list of Column
    rows : list of Row
    surrogates : list of Model
        What CLDL's examples are made on.
    images : Images
        Those of the budget.
    of_images, of_train : int
        How many test images the paper takes, and how many training images there are.
    """

    paper: str
    setting: Setting
    columns: list[Column]
    rows: list[Row]
    surrogates: list[Model]
    images: _data.Images
    of_images: int
    of_train: int

    @property
    def label(self) -> str:
        """Data and networks."""
        return f"{self.images.label}, {self.setting.networks}"

    @property
    def targets(self) -> list[Model]:
        """All that are measured, each once."""
        return _each_once([model for row in self.rows for model in row.models])

    @property
    def models(self) -> list[Model]:
        """All that are trained, each once."""
        return _each_once([*self.surrogates, *self.targets])


def parts(
    table: PublishedTable,
    budget: Budget,
    *,
    methods: Sequence[str] | None = None,
    ablations: bool = False,
    attacks: Sequence[str] | None = None,
    archive: Path | None = None,
) -> list[Part]:
    """What a table needs, a part for each of its settings.

    Parameters
    ----------
    table : PublishedTable
    budget : Budget
    methods : sequence of str, default=None
        Names of rows to run; None is all.
    ablations : bool, default=False
        Whether rows are added that the paper does not have.
    attacks : sequence of str, default=None
        Columns to run, in any case; None is all.
    archive : Path, default=None
        See `_data.load`.

    Raises
    ------
    ValueError
        For methods and attacks that the table does not have, several data sets for one archive,
        and test images that the paper's split does not fit.
    DatasetNotFoundError
    """
    _refuse_unknown(methods or (), [row.method for row in table.rows])
    _refuse_unknown(attacks or (), table.attacks, fold=str.lower)
    if archive is not None:
        _refuse_several([setting.dataset for setting in table.settings])
    return [
        part(table, setting, budget, methods, ablations, attacks, archive)
        for setting in table.settings
    ]


def _refuse_unknown(
    names: Sequence[str], known: Sequence[str], fold: Callable[[str], str] = str
) -> None:
    folded = set(map(fold, known))
    unknown = [name for name in names if fold(name) not in folded]
    if unknown:
        listed = ", ".join(dict.fromkeys(known))
        raise ValueError(f"the table has no {', '.join(unknown)}; it has {listed}")


def _refuse_several(datasets: Sequence[str]) -> None:
    if len(set(datasets)) > 1:
        listed = " and ".join(dict.fromkeys(datasets))
        raise ValueError(
            f"--npz holds one data set, but the table needs {listed}: choose one by --dataset"
        )


def part(
    table: PublishedTable,
    setting: Setting,
    budget: Budget,
    methods: Sequence[str] | None,
    ablations: bool,
    attacks: Sequence[str] | None,
    archive: Path | None,
) -> Part:
    """One setting of a table; see `parts`."""
    everything = _data.load(setting.dataset, archive)
    index = _test_index(table, len(everything.y_test))
    taken = index[: budget.images_of(len(index))]
    images = everything.head(budget.train_images_of(len(everything.y)), taken)
    seeds = budget.seeds_of(table.paper)

    def trained(method: Method) -> list[Model]:
        return [model(method, setting, budget, images, random_state=seed) for seed in seeds]

    rows = []
    for printed in (row for row in table.rows if row.setting == setting):
        method = _methods.published(table.paper, printed.method)
        note = "" if method else "not in this package"
        if methods is not None and printed.method not in methods:
            method, note = None, "not asked for"
        models = trained(method) if method else []
        rows.append(Row(printed.method, method, printed.values, models, note))
    names = [row.name for row in rows]
    for added in _methods.ablations(table.paper, setting) if ablations else ():
        if added.name not in names:
            rows.append(Row(added.name, added, {}, trained(added), added.why))
    surrogates = [
        model(_methods.surrogate(n), setting._replace(members=n), budget, images)
        for n in (SURROGATES if table.paper == "cldl" else ())
    ]
    columns = _columns(table, setting, attacks)
    return Part(
        table.paper, setting, columns, rows, surrogates, images, len(index), len(everything.y)
    )


def _columns(
    table: PublishedTable, setting: Setting, attacks: Sequence[str] | None
) -> list[Column]:
    """Those of some attacks, and without one."""
    every = table.columns(setting)
    if attacks is None:
        return every
    wanted = {"clean", *map(str.lower, attacks)}
    return [column for column in every if column.attack.lower() in wanted]


def model(
    method: Method, setting: Setting, budget: Budget, images: _data.Images, **params: Any
) -> Model:
    """A method with its settings at a budget, and a name for it."""
    epochs = budget.epochs_of(method.estimator(setting).max_epochs)
    estimator = method.estimator(setting, epochs=epochs, **budget.training(), **params)
    text = f"{described(estimator)} on {len(images.y)} images of {images.identity}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    seed = estimator.random_state
    key = f"{method.method}-{setting.dataset}-{setting.members}-seed{seed}-{digest}"
    return Model(key, estimator, images)


def _each_once(models: Sequence[Model]) -> list[Model]:
    return list({model.key: model for model in models}.values())


def _test_index(table: PublishedTable, n_images: int) -> NDArray[np.int64]:
    """Which test images the paper takes, in its order."""
    if table.paper != "cldl":
        return np.arange(n_images)
    if n_images != _SPLIT_IMAGES:
        raise ValueError(
            f"the paper's split is of the data set's {_SPLIT_IMAGES} test images, in its order, "
            f"but there are {n_images}: give an archive that has them all"
        )
    tuning, evaluation = cldl_split()
    return tuning if table.name in _TUNING_TABLES else evaluation
