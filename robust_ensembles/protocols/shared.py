"""Common parts of the protocols: targets, accuracies under attack, and the result table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from .._checks import one_of
from .._plain import described
from ..attacks import PGD, Attack, Target, resolve_target
from ..estimators import EnsembleParameters, VanillaEnsembleClassifier

Mask = NDArray[np.bool_]


class Row(NamedTuple):
    """One line of a table; see `ProtocolResult.to_frame`."""

    estimator: str
    threat: str
    attack: str
    eps: float
    metric: str
    faithful: float
    sound: float
    n_samples: int
    published: bool


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Numbers as a paper computes them, with sound numbers beside them.

    Parameters
    ----------
    protocol : str
        Name of the paper's method.
    rows : list of Row
    settings : dict
        Everything needed to reproduce the numbers, including versions. Only strings, numbers,
        lists and dicts, so that it can be written as JSON.
    quirks : list of str
        Differences between the faithful and the sound numbers, a sentence each.
    """

    protocol: str
    rows: list[Row]
    settings: dict[str, Any]
    quirks: list[str]

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a tidy table.

        Returns
        -------
        table : pandas.DataFrame
            With the columns

            - ``estimator``: its name;
            - ``threat``: ``"none"``, ``"black"`` or ``"white"`` box;
            - ``attack``: the paper's name, ``"clean"``, or ``"worst"``, the per-sample worst case
              of all attacks at this eps;
            - ``eps``: in the units of X; 0 for clean;
            - ``metric``: ``"conditional"``, the fraction of the images that the estimator
              classifies correctly when clean, or ``"unconditional"``, the fraction of all images;
            - ``faithful``: accuracy, a fraction, under the paper's attack as the paper counts;
            - ``sound``: accuracy under additional sound attacks, of images that are correct when
              clean; at most ``faithful``, unless that uses other statistics of BatchNorm (`ncen`);
            - ``n_samples``: number of images behind ``faithful``;
            - ``published``: whether the paper reports this metric of this attack.
        """
        return pd.DataFrame(self.rows, columns=list(Row._fields))

    def to_markdown(self) -> str:
        """The numbers, in percent, and the quirks.

        Returns
        -------
        text : str
        """
        columns = Row._fields[:-1]
        lines = [_line(columns), _line("---" for _ in columns)]
        lines += [_line(_cells(row)) for row in self.rows]
        quirks = "\n".join(f"- {quirk}" for quirk in self.quirks)
        return (
            f"## Protocol of {self.protocol}\n\n"
            + "\n".join(lines)
            + f"\n\nAccuracy in percent.\n\n{quirks}\n"
        )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    percents = [f"{100 * value:.1f}" for value in (row.faithful, row.sound)]
    return [
        row.estimator.replace("|", "\\|"),
        row.threat,
        row.attack,
        f"{row.eps:g}",
        row.metric,
        *percents,
        str(row.n_samples),
    ]


Box = tuple[float, float]

_SOUND_LOSSES = ("margin", "member_cross_entropy")


def named_targets(estimators: Any, X: ArrayLike, y: ArrayLike) -> list[Target]:
    """Targets of one fitted estimator, or several by name, with the images.

    Parameters
    ----------
    estimators : fitted estimator or dict of these
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)

    Returns
    -------
    targets : list of Target

    Raises
    ------
    ValueError
        If there are no estimators or no images, for different lengths of X and y, or for uint8
        images where eps would not be in units of [0, 1].
    """
    named = by_name(estimators)
    if not named:
        raise ValueError(
            "estimators is empty; give a fitted estimator, or a dict name -> estimator"
        )
    return [named_target(name, estimator, X, y) for name, estimator in named.items()]


def by_name(estimators: Any) -> dict[str, Any]:
    """Estimators by name; a single one is named after its class."""
    if isinstance(estimators, Mapping):
        return {str(name): estimator for name, estimator in estimators.items()}
    return {type(estimators).__name__: estimators}


def named_target(name: str, estimator: Any, X: ArrayLike, y: ArrayLike) -> Target:
    """Target of one fitted estimator with the images; see `named_targets`."""
    n_images, n_labels = len(np.asarray(X)), len(np.asarray(y))
    if n_images != n_labels or not n_images:
        raise ValueError(f"X must hold an image for each label; got {n_images} and {n_labels}")
    target = resolve_target(estimator, X)
    if np.asarray(X).dtype == np.uint8 and not target.scales_uint8:
        raise ValueError(
            f"{name}: X is uint8, which this estimator takes for numbers from 0 to 255, but eps "
            "is meant for images in [0, 1]. Train and test it on X / 255"
        )
    return replace(target.on(X, y), name=name)


def sound_attacks(eps: float, *, n_steps: int, **shared: Any) -> list[Attack]:
    """PGD with steps of eps / 4, on losses that neither saturate nor cancel.

    Parameters
    ----------
    eps : float
    n_steps : int
    **shared
        Other parameters of `PGD`.

    Returns
    -------
    attacks : list of Attack
        On the margin of the mean probability, and on the members' mean cross-entropy.
    """
    return [
        PGD(eps=eps, n_steps=n_steps, step_size=eps / 4, loss=loss, **shared)
        for loss in _SOUND_LOSSES
    ]


Play = Callable[[Target, Any], tuple[Mask, Mask]]
"""Runs one attack of a paper; returns correct images as the paper counts, and as deployed."""


def last_iterate(attacked: Target, attack: Attack) -> tuple[Mask, Mask]:
    """The default `Play`: images that are correct after the last step, also if not when clean."""
    right = ~attacked.broken(attacked.last_iterates(attack))
    return right, right


def white_box_rows(
    attacked: Target,
    eps: float,
    attacks: Mapping[str, Sequence[Attack]],
    sound: Sequence[Attack],
    play: Play,
    *,
    published: str | None,
    clean: Mask | None = None,
) -> list[Row]:
    """Rows of each attack at one eps, and of the worst case if there are several.

    Parameters
    ----------
    attacked : Target
    eps : float
    attacks : dict of sequences of Attack
        The paper's attacks by name; the worst case of a sequence counts.
    sound : sequence of Attack
        The sound number is the worst case of these and the paper's attack.
    play : callable
    published : str or None
        The metric that the paper reports.
    clean : bool ndarray of shape (n_samples,), default=None
        Images that are correct before the attack as the paper counts, if not as deployed.

    Returns
    -------
    rows : list of Row
    """
    withstood = attacked.withstood(sound)
    outcomes = {}
    for name, several in attacks.items():
        played = [play(attacked, attack) for attack in several]
        faithful = np.logical_and.reduce([as_counted for as_counted, _ in played])
        outcomes[name] = faithful, np.logical_and.reduce([withstood, *(own for _, own in played)])
    return outcome_rows(attacked, "white", eps, outcomes, published=published, clean=clean)


def outcome_rows(
    attacked: Target,
    threat: str,
    eps: float,
    outcomes: Mapping[str, tuple[Mask, Mask]],
    *,
    published: str | None,
    clean: Mask | None = None,
) -> list[Row]:
    """Rows of each attack at one eps, and of the worst case if there are several.

    Parameters
    ----------
    attacked : Target
    threat : str
    eps : float
    outcomes : dict of pairs of bool ndarray of shape (n_samples,)
        Images that remain correct, in the faithful and the sound count, by the name of the attack.
    published : str or None
        The metric that the paper reports.
    clean : bool ndarray of shape (n_samples,), default=None
        See `white_box_rows`.

    Returns
    -------
    rows : list of Row
        Two for each attack: conditional and unconditional.
    """
    worst = [np.logical_and.reduce(masks) for masks in zip(*outcomes.values(), strict=True)]
    named = {**outcomes, "worst": (worst[0], worst[1])} if len(outcomes) > 1 else outcomes
    counted = attacked.right() if clean is None else clean
    everyone = np.ones_like(counted)
    rows = []
    for attack, (faithful, sound) in named.items():
        for metric, of, sound_of in (
            ("conditional", counted, attacked.right()),
            ("unconditional", everyone, everyone),
        ):
            accuracies = fraction(faithful, of), fraction(sound, sound_of)
            printed = metric == published and attack != "worst"
            rows.append(
                Row(attacked.name, threat, attack, eps, metric, *accuracies, int(of.sum()), printed)
            )
    return rows


def clean_row(attacked: Target, *, published: bool, clean: Mask | None = None) -> Row:
    """Accuracy without an attack; `clean` as in `white_box_rows`."""
    counted = attacked.right() if clean is None else clean
    accuracies = float(counted.mean()), float(attacked.right().mean())
    metric = "unconditional"
    return Row(attacked.name, "none", "clean", 0.0, metric, *accuracies, len(counted), published)


def fraction(mask: Mask, of: Mask) -> float:
    """Fraction of some samples that a mask selects; NaN without samples."""
    return float(mask[of].mean()) if of.any() else float("nan")


def fixed_radii(
    owner: str,
    dataset: str | None,
    eps: float | Sequence[float] | None,
    grids: Mapping[str, tuple[float, ...]],
) -> tuple[float, ...]:
    """The given radii, or those of a data set.

    Parameters
    ----------
    owner : str
        Name for messages.
    dataset : str or None
    eps : float, sequence of float, or None
        Overrides the data set's.
    grids : dict of tuples of float

    Returns
    -------
    radii : tuple of float

    Raises
    ------
    ValueError
        For an unknown data set, invalid radii, or if neither is given.
    """
    if dataset is not None:
        one_of(dataset, grids, f"{owner}: dataset")
    if eps is not None:
        return check_grid(eps, owner)
    if dataset is None:
        raise ValueError(f"{owner} needs eps, or a dataset that gives it: one of {list(grids)}")
    return grids[dataset]


def check_grid(eps: float | Sequence[float], owner: str) -> tuple[float, ...]:
    """The radii as a tuple; raise unless there is at least one, and all are finite and positive."""
    radii: list[Any] = [eps] if isinstance(eps, Real) else list(eps)  # type: ignore[arg-type]
    if not radii or not all(isinstance(r, Real) and 0 < float(r) < float("inf") for r in radii):
        raise ValueError(
            f"{owner}: eps must be a positive number, in the units of X, or several; got {eps!r}"
        )
    return tuple(float(radius) for radius in radii)


def described_all(estimators: Any) -> dict[str, str]:
    """Descriptions of one estimator, or several by name."""
    return {name: described(estimator) for name, estimator in by_name(estimators).items()}


def train_surrogates(
    recipe: EnsembleParameters | Mapping[str, Any],
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_members: Sequence[int] = (3, 5),
    random_state: int = 1000,
) -> list[VanillaEnsembleClassifier]:
    """Train the surrogates of CLDL's black box: vanilla ensembles of 3 and of 5 members.

    Parameters
    ----------
    recipe : estimator or dict
        Any ensemble of this package, fitted or not, whose network and training settings are
        used (without the parameters of its method), or a dict of such settings. As published:
        ``recipes.get("vanilla", "cifar10", source="cldl")``; there the targets GAL and CLDL have
        leaky ReLUs and noise in training, and the surrogates have neither.
    X : array-like of shape (n_samples, ...)
        Training images.
    y : array-like of shape (n_samples,)
    n_members : sequence of int, default=(3, 5)
        One surrogate for each.
    random_state : int, default=1000
        A surrogate of n members has the seed ``random_state + n``: with equal seeds the members
        of one would be among those of the other, and of a vanilla target.

    Returns
    -------
    surrogates : list of VanillaEnsembleClassifier
        Fitted.

    Raises
    ------
    TypeError
        If `recipe` is neither an ensemble nor a dict.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier, protocols
    >>> from robust_ensembles.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> recipe = VanillaEnsembleClassifier(max_epochs=2)
    >>> [len(s.estimators_) for s in protocols.train_surrogates(recipe, X[:500], y[:500])]
    [3, 5]
    """
    vanilla = _vanilla(recipe)
    surrogates = []
    for n in n_members:
        surrogate = clone(vanilla).set_params(n_estimators=n, random_state=random_state + n)
        surrogates.append(surrogate.fit(X, y))
    return surrogates


def _vanilla(recipe: Any) -> VanillaEnsembleClassifier:
    if isinstance(recipe, Mapping):
        return VanillaEnsembleClassifier(**recipe)
    if not isinstance(recipe, EnsembleParameters):
        raise TypeError(
            "recipe must be an ensemble of robust_ensembles, such as recipes.get('vanilla', "
            f"'cifar10'), or a dict of its settings; got {recipe!r}"
        )
    settings = {field.name: getattr(recipe, field.name) for field in fields(EnsembleParameters)}
    return VanillaEnsembleClassifier(**{**settings, "warm_start": False, "checkpoint_dir": None})
