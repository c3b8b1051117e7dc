"""Attacks on ensembles: what the benchmarks of defences share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robust_ensembles.attacks import BIM, FGSM, MIM, PGD, BoundedAttack, WorstCase, is_broken

TRANSFERRED: dict[str, type[BoundedAttack]] = {"fgsm": FGSM, "bim": BIM, "mim": MIM, "pgd": PGD}


def prepare_torch(threads: int) -> None:
    """Set torch up for a benchmark; 0 threads leaves torch's choice."""
    # gradients of well-fitted samples are subnormal in float32, which a CPU computes slowly
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)


def transfer_sets(
    surrogates: Sequence[nn.Module], x: Tensor, y: Tensor, eps: float
) -> dict[str, list[Tensor]]:
    """Protocol E1: attacks on the surrogates, with two losses and (where it matters) 3 seeds."""
    sets: dict[str, list[Tensor]] = {kind: [] for kind in TRANSFERRED}
    for module in surrogates:
        for kind, attack in TRANSFERRED.items():
            steps: dict[str, Any] = {} if kind == "fgsm" else {"n_steps": 10, "step_size": eps / 5}
            for loss in ("cross_entropy", "cw_margin"):
                for seed in range(3 if kind == "pgd" else 1):
                    made = attack(eps=eps, loss=loss, random_state=seed, **steps)
                    sets[kind].append(made(module, x, y, stop_when_broken=False))
    return sets


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
    module: nn.Module, sets: dict[str, list[Tensor]], x: Tensor, y: Tensor, eps: float
) -> dict[str, float]:
    """Accuracy after each kind of transferred attack, and after all, in percent."""
    clean = ~is_broken(module, x, y)
    worst, row = clean.clone(), {}
    for kind, examples in sets.items():
        mask = clean.clone()
        for x_adv in examples:
            mask &= ~is_broken(module, x_adv, y)
        worst &= mask
        row[f"transfer {kind} eps {eps:g}"] = percent(mask)
        row[f"{kind}, of clean-correct"] = percent(mask[clean])
    row[f"transfer worst eps {eps:g}"] = percent(worst)
    row["worst, of clean-correct"] = percent(worst[clean])
    return row


def tensors(X: NDArray[Any], y: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their labels."""
    return torch.from_numpy(X).float() / 255, torch.from_numpy(y)


def percent(mask: Tensor) -> float:
    """Part of True in percent, to one digit."""
    return round(100 * float(mask.float().mean()), 1)
