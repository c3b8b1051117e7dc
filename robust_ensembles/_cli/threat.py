"""The norm and radius of attacks in `evaluate` and `report`, and the options that set them."""

from __future__ import annotations

import argparse
from typing import Any

from ..attacks import BoundedAttack, Transfer
from ..attacks.engine.balls import check_radius
from ..metrics import attack_from_name

PIXELS = (0.0, 1.0)
"""Range of the pixel values."""

USUAL = 8 / 255
"""Default radius in linf."""


def has_own_radius(name: str, surrogate: Any = None) -> bool:
    """Whether the name of an attack contains its radius."""
    first, second = (_bounded(name, surrogate, eps=eps).eps for eps in (0.25, 0.5))
    return bool(first == second)


def settle_threat(args: argparse.Namespace) -> None:
    """Set the attack radius of `evaluate` and `report`, before files are read.

    Parameters
    ----------
    args : Namespace
        With `attacks`, `eps`, `norm` and `surrogate`; `eps` is set where it is None.

    Raises
    ------
    ValueError
        For a radius in other units than the pixels', or in another norm than the attack's.
    """
    if args.eps is None:
        if args.norm != "linf":
            raise ValueError(
                f"--norm {args.norm} needs --eps, such as --eps 0.5: the usual 8/255 is a radius "
                "in linf"
            )
        args.eps = USUAL
    check_radius(args.eps, args.norm, PIXELS, "--eps")
    for name in args.attacks:
        attack = _bounded(name, args.surrogate, eps=args.eps, norm=args.norm)
        check_radius(attack.eps, attack.norm, PIXELS, f"--attacks {name}")
        if attack.norm != args.norm and not has_own_radius(name, args.surrogate):
            raise ValueError(
                f"--attacks {name}: --eps {args.eps:g} is a radius in {args.norm}, not in "
                f"{attack.norm}: give the name one of its own, such as {name}_0.5"
            )


def shown(eps: float, norm: str) -> str:
    """A radius as text."""
    return f"{eps:.4g} ({255 * eps:.4g}/255)" if norm == "linf" else f"{eps:.4g}"


def words_of(attack: Any) -> list[str]:
    """Options that give `evaluate` the exact radius and norm of an attack."""
    eps, norm = (attack.eps, attack.norm) if attack is not None else (USUAL, "linf")
    levels = round(255 * eps)
    text = f"{levels}/255" if norm == "linf" and levels / 255 == eps else repr(float(eps))
    return ["--eps", text, *(["--norm", norm] if norm != "linf" else [])]


def _bounded(name: str, surrogate: Any, **threat: Any) -> BoundedAttack:
    """The attack with this name; for a transfer attack, the one run on the surrogate."""
    attack: Any = attack_from_name(name, surrogate=surrogate, **threat)
    return attack.attacks()[0] if isinstance(attack, Transfer) else attack
