"""Attacks from names such as ``"pgd20_linf_8_255"``."""

from __future__ import annotations

import re
from typing import Any

from .. import _registry
from .._checks import one_of
from . import Attack, BoundedAttack, Transfer

_PATTERN = re.compile(
    r"(?P<attack>[a-z]+)(?P<count>\d{1,18})?(?:_(?P<norm>[a-z]+\d?))?"
    r"(?:_(?P<eps>\d{0,18}\.?\d{1,18})(?:_(?P<denominator>[1-9]\d{0,17}))?)?"
)


def attack_from_name(name: str, *, surrogate: Any = None, **defaults: Any) -> Attack:
    """Make the attack with a given name.

    Parameters
    ----------
    name : str
        Attack, number of steps, norm and eps: ``"fgsm"``, ``"pgd20"``, ``"cw40_l2_0.5"``,
        ``"autoattack_linf_8_255"``. All but the attack may be omitted; for attacks that search
        without gradients, the number is that of queries. ``"transfer"``, or ``"transfer_"``
        before another name, makes the examples on the surrogate.
    surrogate : fitted estimator, nn.Module, or sequence of these, default=None
        For ``"transfer"``.
    **defaults
        Parameters that are not in the name: `eps`, `norm`, `clip_values` and so on. None keeps
        the attack's own default.

    Returns
    -------
    attack : Attack

    Raises
    ------
    ValueError
        For an unknown name, with the nearest one as a hint, or for a transfer without surrogate.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an attack must be a text such as 'pgd20'; got {name!r}")
    if name == "transfer" or name.startswith("transfer_"):
        return _transfer(name, surrogate, defaults)
    declared = _registry.named_attacks()
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of an attack; names look like 'fgsm', 'pgd20' or "
            f"'pgd20_linf_8_255', with the attacks {sorted(declared)}"
        )
    one_of(match["attack"], declared, f"attack of {name!r}")
    wanted = declared[match["attack"]]
    params = {key: value for key, value in defaults.items() if value is not None}
    if match["count"]:
        if wanted.count is None:
            raise ValueError(f"{name!r}: {wanted.name} has no number of steps")
        params[wanted.count] = int(match["count"])
    if match["norm"]:
        params["norm"] = match["norm"]
    if match["eps"]:
        params["eps"] = float(match["eps"]) / float(match["denominator"] or 1)
    attack: Attack = wanted.cls(**params)
    attack._validate()
    return attack


def _transfer(name: str, surrogate: Any, defaults: dict[str, Any]) -> Attack:
    """The black-box attack with a given name."""
    if surrogate is None:
        raise ValueError(
            f"{name!r} needs a surrogate to make the examples on: "
            "robust_scoring('transfer', surrogate=another_fitted_estimator)"
        )
    made = attack_from_name(name.removeprefix("transfer").removeprefix("_") or "pgd", **defaults)
    if not isinstance(made, BoundedAttack):
        raise ValueError(
            f"{name!r}: {type(made).__name__} only looks for the first success on a surrogate; "
            "take a single attack, such as 'transfer_pgd20' or 'transfer_mim10'"
        )
    black_box = Transfer(surrogate, made)
    black_box._validate()
    return black_box
