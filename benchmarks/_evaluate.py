"""Attacks on ensembles: what the benchmarks of defences share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robust_ensembles import protocols
from robust_ensembles.attacks import PGD, BoundedAttack, WorstCase, is_broken

Images = NDArray[Any]


def prepare_torch(threads: int) -> None:
    """Set torch up for a benchmark; 0 threads leaves torch's choice."""
    # gradients of well-fitted samples are subnormal in float32, which a CPU computes slowly
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)


def white_box(module: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float]) -> dict[str, float]:
    """Clean accuracy and the worst of PGD-20 on two losses, in percent."""
    clean = ~is_broken(module, x, y)
    row = {"clean": percent(clean)}
    for eps in radii:
        attacks = [PGD(eps=eps, loss=loss) for loss in ("margin", "member_cross_entropy")]
        row[f"white PGD-20 eps {eps:g}"] = percent(survivors(module, attacks, x, y))
    return row


def survivors(module: nn.Module, attacks: Sequence[BoundedAttack], x: Tensor, y: Tensor) -> Tensor:
    """Samples that are right when clean and after every one of the attacks."""
    return ~is_broken(module, WorstCase(attacks)(module, x, y), y)


def transferred(
    models: Mapping[str, Any], surrogates: Sequence[Any], X: Images, y: Images, eps: float
) -> dict[str, dict[str, float]]:
    """Of each model, accuracy after each kind of transferred attack, and after all, in percent.

    CLDL's protocol, with the CW loss that is right.
    """
    result = protocols.cldl(
        dict(models), X, y, surrogates=surrogates, eps=eps, subset="all", cw="sound"
    )
    rows: dict[str, dict[str, float]] = {name: {} for name in models}
    for row in result.rows:
        if row.threat == "black":
            attack = row.attack.lower()
            label = (
                f"transfer {attack} eps {eps:g}"
                if row.metric == "unconditional"
                else f"{attack}, of clean-correct"
            )
            rows[row.estimator][label] = round(100 * row.sound, 1)
    return rows


def tensors(X: NDArray[Any], y: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their labels."""
    return torch.from_numpy(X).float() / 255, torch.from_numpy(y)


def percent(mask: Tensor) -> float:
    """Part of True in percent, to one digit."""
    return round(100 * float(mask.float().mean()), 1)
