"""Attacks by name: ``"pgd20_linf_8_255"``."""

from __future__ import annotations

import re
from typing import Any

from .._checks import one_of
from . import (
    APGD,
    BIM,
    CW,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    Attack,
    AutoAttack,
    BoundedAttack,
    DeepFool,
    EnsembleAutoAttack,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
)

_ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "mim": MIM,
    "pgd": PGD,
    "cw": CW,
    "apgd": APGD,
    "apgdt": TargetedAPGD,
    "fab": FAB,
    "deepfool": DeepFool,
    "square": Square,
    "mora": MORA,
    "autoattack": AutoAttack,
    "ensembleautoattack": EnsembleAutoAttack,
    "noise": UniformNoise,
}
_STEPPED = ("bim", "mim", "pgd", "cw", "apgd", "apgdt", "fab", "deepfool", "mora")
# which parameter the number behind an attack's name sets
_COUNT = {
    **dict.fromkeys(_STEPPED, "n_steps"),
    **dict.fromkeys(("square", "autoattack", "ensembleautoattack"), "n_queries"),
    "noise": "n_draws",
}

_PATTERN = re.compile(
    r"(?P<attack>[a-z]+)(?P<count>\d{1,18})?(?:_(?P<norm>[a-z]+\d?))?"
    r"(?:_(?P<eps>\d{0,18}\.?\d{1,18})(?:_(?P<denominator>[1-9]\d{0,17}))?)?"
)


def attack_from_name(name: str, *, surrogate: Any = None, **defaults: Any) -> Attack:
    """Attack that a name stands for.

    Parameters
    ----------
    name : str
        Attack, number of steps, norm and eps: ``"fgsm"``, ``"pgd20"``, ``"cw40_l2_0.5"``,
        ``"autoattack_linf_8_255"``. All but the attack may be left out; the number of the
        attacks that search without gradients is that of queries. ``"transfer"``, or
        ``"transfer_"`` before another name, makes the examples on the surrogate.
    surrogate : fitted estimator, nn.Module, or sequence of these, default=None
        For ``"transfer"``.
    **defaults
        Parameters that the name does not give: `eps`, `norm`, `clip_values` and so on. None
        leaves the attack's own default.

    Returns
    -------
    attack : Attack

    Raises
    ------
    ValueError
        For a name that is not understood, with the nearest attack, or a transfer without
        surrogate.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an attack must be a text such as 'pgd20'; got {name!r}")
    if name == "transfer" or name.startswith("transfer_"):
        return _transfer(name, surrogate, defaults)
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of an attack; names look like 'fgsm', 'pgd20' or "
            f"'pgd20_linf_8_255', with the attacks {sorted(_ATTACKS)}"
        )
    one_of(match["attack"], _ATTACKS, f"attack of {name!r}")
    params = {key: value for key, value in defaults.items() if value is not None}
    if match["count"]:
        if match["attack"] not in _COUNT:
            raise ValueError(f"{name!r}: {match['attack']} has no number of steps")
        params[_COUNT[match["attack"]]] = int(match["count"])
    if match["norm"]:
        params["norm"] = match["norm"]
    if match["eps"]:
        params["eps"] = float(match["eps"]) / float(match["denominator"] or 1)
    attack = _ATTACKS[match["attack"]](**params)
    attack._validate()
    return attack


def _transfer(name: str, surrogate: Any, defaults: dict[str, Any]) -> Attack:
    """The black-box attack that a name stands for."""
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
