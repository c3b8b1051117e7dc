"""What is measured of a part of a table: the papers' protocols, and what tells claims apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robust_ensembles import protocols
from robust_ensembles.attacks import Target
from robust_ensembles.protocols import ProtocolResult
from robust_ensembles.protocols.cldl import transfer_attacks
from robust_ensembles.protocols.shared import (
    fraction,
    named_target,
    named_targets,
    sound_attacks,
)

from ._cells import Outcome, Rows, Unit
from ._plan import Part

Surrogates = Callable[[], list[Any]]

_LOSSES = {
    "cross-entropy": ("cross_entropy",),
    "released CW": ("released_cw",),
    "CW margin": ("cw_margin",),
    "cross-entropy and released CW": ("cross_entropy", "released_cw"),
    "cross-entropy and CW margin": ("cross_entropy", "cw_margin"),
}


def units(part: Part, surrogates: Surrogates, *, ablations: bool) -> list[Unit]:
    """All units of a part of a table.

    Parameters
    ----------
    part : Part
    surrogates : callable
        Returns the fitted ones.
    ablations : bool
        Whether CLDL's losses are told apart too.
    """
    if part.paper == "ncen":
        return _ncen_units(part)
    if part.paper == "ceat":
        return _ceat_units(part)
    losses = [_loss_unit(part, surrogates)] if ablations else []
    return [*_cldl_units(part, surrogates), _white_box_unit(part), *losses]


def _cldl_units(part: Part, surrogates: Surrogates) -> list[Unit]:
    name = f"cldl-{images_name(part)}-{_surrogates_name(part)}"

    def of_radius(eps: float) -> Unit:
        def run(estimators: Mapping[str, Any]) -> Outcome:
            images = part.images.X_test, part.images.y_test
            result = protocols.cldl(
                dict(estimators), *images, surrogates=surrogates(), eps=eps, subset="all"
            )
            return of_protocol(result)

        return Unit(f"{name}-eps{eps:g}", run, joint=True)

    return [of_radius(eps) for eps in _radii(part)]


def _ncen_units(part: Part) -> list[Unit]:
    def run(estimators: Mapping[str, Any]) -> Outcome:
        images = part.images.X_test, part.images.y_test
        return of_protocol(protocols.ncen(dict(estimators), *images, dataset=part.setting.dataset))

    return [Unit(f"ncen-{images_name(part)}", run)]


def _ceat_units(part: Part) -> list[Unit]:
    """AutoAttack, which takes far longer than the others, by itself."""
    wanted = [column.attack.rstrip("0123456789") for column in part.columns]
    quick: list[str] = [name for name in ("PGD", "MIM", "CW") if name in wanted]
    slow: list[str] = [name for name in ("AA",) if name in wanted]

    def of_attacks(attacks: list[str]) -> Unit:
        def run(estimators: Mapping[str, Any]) -> Outcome:
            images = part.images.X_test, part.images.y_test
            return of_protocol(protocols.ceat(dict(estimators), *images, attacks=attacks))

        return Unit(f"ceat-{images_name(part)}-{'-'.join(attacks)}", run)

    return [of_attacks(group) for group in (quick, slow) if group]


def _white_box_unit(part: Part) -> Unit:
    """CLDL's tables are of transfer alone: the white box beside them, at the second radius."""
    eps = second_radius(part)

    def run(estimators: Mapping[str, Any]) -> Outcome:
        rows = {}
        for target in named_targets(dict(estimators), part.images.X_test, part.images.y_test):
            withstood = target.withstood(sound_attacks(eps, n_steps=20))
            rows[target.name] = [{"white box": float(withstood.mean()), "eps": eps}]
        return rows, []

    return Unit(f"white-{images_name(part)}-eps{eps:g}", run)


def second_radius(part: Part) -> float:
    """Of the radii of a part, the one that further measurements take."""
    return _radii(part)[:2][-1]


def _loss_unit(part: Part, surrogates: Surrogates) -> Unit:
    """What each loss adds to CLDL's black box, at the second radius: the inert CW loss."""
    eps = second_radius(part)
    name = f"losses-{images_name(part)}-{_surrogates_name(part)}-eps{eps:g}"

    def run(estimators: Mapping[str, Any]) -> Outcome:
        images = part.images.X_test, part.images.y_test
        targets = named_targets(dict(estimators), *images)
        sources = [named_target(f"surrogate {i}", s, *images) for i, s in enumerate(surrogates())]
        masks = {loss: _withstood(targets, sources, eps, loss) for [loss] in _single_losses()}
        rows = {}
        for i, target in enumerate(targets):
            rows[target.name] = [
                {
                    "losses": label,
                    "eps": eps,
                    "conditional": fraction(together, target.right()),
                    "unconditional": float(together.mean()),
                    "n_samples": int(target.right().sum()),
                }
                for label, losses in _LOSSES.items()
                for together in [np.logical_and.reduce([masks[loss][i] for loss in losses])]
            ]
        return rows, []

    return Unit(name, run, joint=True)


def _single_losses() -> list[tuple[str, ...]]:
    return [losses for losses in _LOSSES.values() if len(losses) == 1]


def _withstood(targets: list[Target], sources: list[Target], eps: float, loss: str) -> list[Any]:
    """Who is right when clean and after all four attacks on one loss, for each target."""
    masks = [target.right() for target in targets]
    attacks = transfer_attacks(eps, [loss], [0], clip_values=(0.0, 1.0))
    for source in sources:
        for attack in [one for several in attacks.values() for one in several]:
            examples = source.last_iterates(attack)
            for mask, target in zip(masks, targets, strict=True):
                mask &= ~target.broken(examples)
    return masks


def of_protocol(result: ProtocolResult) -> Outcome:
    """A protocol's rows by estimator, and its quirks."""
    rows: dict[str, Rows] = {}
    for row in result.rows:
        content = {name: value for name, value in row._asdict().items() if name != "estimator"}
        rows.setdefault(row.estimator, []).append(content)
    return rows, result.quirks


def _radii(part: Part) -> list[float]:
    return sorted({column.eps for column in part.columns if column.eps})


def images_name(part: Part) -> str:
    """Which test images, for the name of a unit."""
    which = "tuning" if part.of_images == 1000 and part.paper == "cldl" else "test"
    return f"{len(part.images.y_test)}{which}"


def _surrogates_name(part: Part) -> str:
    keys = " ".join(model.key for model in part.surrogates)
    return hashlib.sha256(keys.encode()).hexdigest()[:8]
