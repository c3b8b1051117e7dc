"""Attacks by name: ``"pgd20_linf_8_255"``."""

from __future__ import annotations

import re
from typing import Any

from .._validation import one_of
from ..attacks import BIM, CW, FGSM, MIM, PGD, Attack, BoundedAttack, UniformNoise

_ATTACKS: dict[str, type[BoundedAttack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "mim": MIM,
    "pgd": PGD,
    "cw": CW,
    "noise": UniformNoise,
}
# which parameter the number behind an attack's name sets
_COUNT = {"bim": "n_steps", "mim": "n_steps", "pgd": "n_steps", "cw": "n_steps", "noise": "n_draws"}

_PATTERN = re.compile(
    r"(?P<attack>[a-z]+)(?P<count>\d+)?(?:_(?P<norm>[a-z]+\d?))?"
    r"(?:_(?P<eps>\d*\.?\d+)(?:_(?P<denominator>[1-9]\d*))?)?"
)


def attack_from_name(name: str, **defaults: Any) -> Attack:
    """Attack that a name stands for.

    Parameters
    ----------
    name : str
        Attack, number of steps, norm and eps: ``"fgsm"``, ``"pgd20"``, ``"cw40_l2_0.5"``,
        ``"mim10_linf_8_255"``. All but the attack may be left out.
    **defaults
        Parameters that the name does not give: `eps`, `norm`, `clip_values` and so on. None
        leaves the attack's own default.

    Returns
    -------
    attack : Attack

    Raises
    ------
    ValueError
        For a name that is not understood, with the nearest attack.
    """
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
