"""The papers' figures, as tables whose numbers are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_ensembles import protocols
from robust_ensembles.attacks import MIM, PGD, BoundedAttack
from robust_ensembles.inspection import transferability_matrix

from . import _drawing, _published
from ._cells import Outcome, Rows, Unit
from ._measured import TRANSFER, Line
from ._plan import Part
from ._published import Column, PublishedRow, PublishedTable, Setting
from ._units import images_name, of_protocol, units

Attacks = Mapping[str, tuple[BoundedAttack, BoundedAttack]]
_BOX = (0.0, 1.0)
_MIXED = Setting("cifar10", "resnet20+resnet26+resnet32", 3)
_EQUAL = Setting("cifar10", "resnet20", 3)
_NCEN_GRID = (0.02, 0.04, 0.06, 0.08)
_CEAT_GRID = (1.0, 3.0, 5.0)
_RADII = (0.008, 0.016, 0.031, 0.047, 0.062)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Parameters
    ----------
    what : str
        It shows, and what the paper leaves open.
    table : PublishedTable
        Its rows and columns.
    units : callable
        From a part to what is measured.
    draw : callable
        From a part, its lines and a path to a PNG.
    """

    what: str
    table: PublishedTable
    units: Callable[[Part], list[Unit]]
    draw: Callable[[Part, Sequence[Line], Path], None]


def find(paper: str, number: str) -> Figure:
    """A figure by its number, or by what it shows.

    Raises
    ------
    ValueError
        If there is none.
    """
    makers = {known: make for (owner, known), make in _FIGURES.items() if owner == paper}
    if number in makers:
        return makers[number]()
    known = ", ".join(makers)
    if paper == "ceat" and number in ("4", "5"):
        raise ValueError(
            f"CEAT's Fig. {number} prints no numbers, and what it plots is not among the facts "
            f"that this was written from. Of CEAT there are the figures {known}: 'weights' and "
            "'radii' are plots of ours, over lambda and mu, and over eps"
        )
    raise ValueError(f"{_published.PAPERS[paper]} has no figure {number!r} here; it has {known}")


def numbers(paper: str) -> list[str]:
    """Of all figures of a paper."""
    return [number for owner, number in _FIGURES if owner == paper]


def _ncen_transfer() -> Figure:
    eps = 0.05
    attacks = {
        "PGD": (
            PGD(eps=eps, n_steps=40, step_size=eps, loss="cross_entropy", clip_values=_BOX),
            PGD(eps=eps, n_steps=40, step_size=eps / 4, clip_values=_BOX),
        ),
        "MI-FGSM": (
            MIM(eps=eps, n_steps=40, step_size=0.01, loss="cross_entropy", clip_values=_BOX),
            MIM(eps=eps, n_steps=40, step_size=0.01, clip_values=_BOX),
        ),
    }
    columns = [Column(f"{name} {cell}", eps) for name in attacks for cell in _pairs(3)]
    return Figure(
        "Accuracy of member j (column) on examples made for member i (row), of the images that i "
        "has right; eps 0.05. The steps are not stated: faithful are those of the paper's tables, "
        "on cross-entropy; sound is the margin, PGD by steps of eps / 4.",
        _table("ncen", "fig3", _MIXED, ("BL", "GAL", "GPMR", "NCEn"), columns),
        lambda part: [_transfer(part, attacks, "accuracy", "correct_for_source")],
        _drawing.heat_maps,
    )


def _ceat_transfer() -> Figure:
    walk: dict[str, Any] = {"eps": 0.031, "n_steps": 20, "clip_values": _BOX}
    attacks = {
        "": (
            PGD(step_size=0.007, loss="cross_entropy", **walk),
            PGD(step_size=0.031 / 4, **walk),
        )
    }
    return Figure(
        "Success rate on member j (column) of examples made for member i (row), of the images "
        "that both have right. Attack and eps are not stated: PGD-20 at 0.031 here. Sound is the "
        "margin by steps of eps / 4. A higher success rate is worse.",
        _at(_published.read_figure("ceat", "3"), walk["eps"]),
        lambda part: [_transfer(part, attacks, "success_rate", "correct_for_pair")],
        _drawing.heat_maps,
    )


def _ncen_weights() -> Figure:
    names = [f"NCEn({a:g},{b:g})" for a, b in itertools.product(_NCEN_GRID, repeat=2)]
    columns = _published.read("ncen", "II").columns(_EQUAL)
    return Figure(
        "ACE times the mean AAE over lambda_cos and lambda_norm; for the sound numbers, which are "
        "of all images, their mean. The grid of the paper is not printed.",
        _table("ncen", "fig4", _EQUAL, names, columns),
        lambda part: units(part, list, ablations=False),
        _drawing.contours,
    )


def _ceat_weights() -> Figure:
    names = [f"CEAT({a:g},{b:g})" for a, b in itertools.product(_CEAT_GRID, repeat=2)]
    columns = [Column("clean", 0.0), Column("PGD20", 0.031), Column("MIM", 0.031)]
    return Figure(
        "A plot of ours: mean accuracy under PGD-20 and MIM over lambda and mu.",
        _table("ceat", "weights", _EQUAL, names, columns),
        lambda part: units(part, list, ablations=False),
        _drawing.contours,
    )


def _ceat_radii() -> Figure:
    names = list(dict.fromkeys(row.method for row in _published.read("ceat", "1").rows))
    columns = [Column("clean", 0.0), *(Column("PGD20", eps) for eps in _RADII)]
    return Figure(
        "A plot of ours: accuracy under PGD-20 against eps; steps in proportion to it.",
        _table("ceat", "radii", _EQUAL, names, columns),
        lambda part: [_radius(part, eps) for eps in _RADII],
        _drawing.curves,
    )


def _table(
    paper: str, name: str, setting: Setting, methods: Sequence[str], columns: Sequence[Column]
) -> PublishedTable:
    """Rows without printed numbers."""
    rows = tuple(PublishedRow(setting, method, {}) for method in methods)
    return PublishedTable(paper, name, rows, tuple(columns))


def _at(table: PublishedTable, eps: float) -> PublishedTable:
    """A figure that states no radius, at ours."""
    rows = (
        row._replace(values={Column(c.attack, eps): value for c, value in row.values.items()})
        for row in table.rows
    )
    return replace(table, rows=tuple(rows))


def _pairs(n: int) -> list[str]:
    return [f"{i}->{j}" for i, j in itertools.product(range(1, n + 1), repeat=2)]


def _transfer(part: Part, attacks: Attacks, measure: str, samples: str) -> Unit:
    """Matrices of what is made for one member and tried on another, at one radius."""
    [eps] = {attack.eps for several in attacks.values() for attack in several}

    def run(estimators: Mapping[str, Any]) -> Outcome:
        return {key: _matrices(estimator) for key, estimator in estimators.items()}, []

    def _matrices(estimator: Any) -> Rows:
        rows = []
        for name, several in attacks.items():
            faithful, sound = (
                transferability_matrix(
                    estimator,
                    part.images.X_test,
                    part.images.y_test,
                    attack=attack,
                    measure=measure,
                    samples=samples,
                    include_ensemble=False,
                )
                for attack in several
            )
            for i, j in itertools.product(range(part.setting.members), repeat=2):
                rows.append(
                    {
                        "attack": f"{name} {i + 1}->{j + 1}".strip(),
                        "eps": eps,
                        "metric": TRANSFER,
                        "faithful": float(faithful.values[i, j]),
                        "sound": float(sound.values[i, j]),
                        "n_samples": int(faithful.n_samples[i, j]),
                        "published": True,
                    }
                )
        return rows

    return Unit(f"transfer-{images_name(part)}-eps{eps:g}", run)


def _radius(part: Part, eps: float) -> Unit:
    def run(estimators: Mapping[str, Any]) -> Outcome:
        images = part.images.X_test, part.images.y_test
        settings: dict[str, Any] = {"eps": eps, "step_size": eps * 0.007 / 0.031}
        return of_protocol(protocols.ceat(dict(estimators), *images, attacks=["PGD"], **settings))

    return Unit(f"radius-{images_name(part)}-eps{eps:g}", run)


_FIGURES: dict[tuple[str, str], Callable[[], Figure]] = {
    ("ncen", "3"): _ncen_transfer,
    ("ncen", "4"): _ncen_weights,
    ("ceat", "3"): _ceat_transfer,
    ("ceat", "weights"): _ceat_weights,
    ("ceat", "radii"): _ceat_radii,
}
