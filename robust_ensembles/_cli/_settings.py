"""An unfitted estimator from what stands on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from .. import recipes
from .._checks import one_of
from ..attacks import BoundedAttack
from ..attacks._checks import check_radius
from ..estimators import BaseEnsembleClassifier
from ..metrics import attack_from_name
from ._radius import PIXELS, has_own_radius

# parameters with an option of their own
_OPTIONS = {
    "max_epochs": "epochs",
    "random_state": "seed",
    "device": "device",
    "checkpoint_dir": "checkpoints",
}
# those that go into dictionaries, which the network and the optimizer judge
_FREE = ("module", "optimizer")
_BOXES = ("clip_values", "attack__clip_values")


def make_estimator(args: argparse.Namespace) -> BaseEnsembleClassifier:
    """The estimator that is asked for.

    Parameters
    ----------
    args : Namespace
        With `method`, `recipe`, `source`, `set`, `eps`, and the options of `_OPTIONS`.

    Returns
    -------
    estimator : BaseEnsembleClassifier

    Raises
    ------
    ValueError
        For a parameter that does not exist or is given twice, and for a radius that is given
        twice, is missing, or is of other units than the pixels.
    """
    if args.eps == 0:
        raise ValueError(
            "--eps 0: attacks in training need a radius of more than 0; --method vanilla trains "
            "on images as they are"
        )
    if args.source is not None and args.recipe is None:
        raise ValueError("--source says whose recipe it is: give --recipe, too")
    settings = _settings(args)
    start = _start(args, {})
    _check_names(start, settings)
    if args.eps is not None:
        settings.update(_of_eps(start, settings, args))
    estimator = _start(args, settings)
    _check_attack(training_attack(estimator), settings, args)
    return estimator


def training_attack(estimator: BaseEnsembleClassifier) -> Any:
    """The attack that an estimator trains on, or None."""
    return _part(estimator, {}, "attack") if hasattr(estimator, "attack") else None


def _start(args: argparse.Namespace, settings: dict[str, Any]) -> BaseEnsembleClassifier:
    if args.recipe is not None:
        return recipes.get(args.method, args.recipe, source=args.source, **settings)
    estimator = recipes.METHODS[args.method]()
    estimator.set_params(**settings)
    return estimator


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """All parameters that are given, by --set or by options of their own."""
    settings: dict[str, Any] = {}
    for name, value in args.set:
        if name in settings:
            raise ValueError(f"--set {name}=... is given twice")
        if name in _OPTIONS:
            raise ValueError(f"--set {name}={value!r}: give it as --{_OPTIONS[name]} {value}")
        if name == "verbose":
            raise ValueError(f"--set verbose={value!r}: epochs are shown unless --quiet is given")
        if name in _BOXES and value not in (PIXELS, list(PIXELS)):
            raise ValueError(
                f"--set {name}={value!r}: leave it out, as the commands give pixels from 0 to 1, "
                "which no attack may leave"
            )
        settings[name] = value
    if isinstance(settings.get("attack"), str):
        settings["attack"] = _named_attack(settings["attack"], args.eps)
    given = {name: getattr(args, option) for name, option in _OPTIONS.items()}
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


def _named_attack(name: str, eps: float | None) -> Any:
    if eps is not None and has_own_radius(name):
        raise ValueError(
            f"--set attack={name} has a radius, and so has --eps {eps:g}: give it once"
        )
    return attack_from_name(name, eps=eps)


def _check_names(estimator: BaseEnsembleClassifier, settings: dict[str, Any]) -> None:
    """Raise for a parameter that does not exist."""
    for name, value in settings.items():
        head, _, inner = name.partition("__")
        what = f"--set {name}={value!r}: a parameter of {type(estimator).__name__}"
        one_of(head, estimator._get_param_names(), what)
        if not inner or head in _FREE:
            continue
        part = _part(estimator, settings, head)
        if hasattr(part, "get_params"):
            what = f"--set {name}={value!r}: a parameter of {type(part).__name__}"
            one_of(inner.partition("__")[0], part.get_params(deep=False), what)
        elif part is not None:
            raise ValueError(f"--set {name}={value!r}: {head}={part!r} has no parameters")


def _part(estimator: Any, settings: dict[str, Any], name: str) -> Any:
    """A component, or the default one that stands for None."""
    part = settings.get(name, getattr(estimator, name))
    if part is None and name == "attack":
        return estimator._default_attack()
    return part


def _of_eps(
    estimator: BaseEnsembleClassifier, settings: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """What ``--eps`` means: the radius of the attack in training, and steps in proportion."""
    if "attack__eps" in settings:
        raise ValueError("give --eps or --set attack__eps=..., not both")
    if settings.get("attack") is not None:
        return {}  # made with this eps
    attack = _part(estimator, settings, "attack") if hasattr(estimator, "attack") else None
    if attack is None:
        way = (
            "give it attacks to train on with --set attack=pgd10"
            if hasattr(estimator, "attack")
            else "leave --eps out, and give it to evaluate"
        )
        raise ValueError(
            f"--eps is the radius of attacks in training, but {args.method} trains on images as "
            f"they are: {way}"
        )
    changed: dict[str, Any] = {"attack__eps": args.eps}
    if "attack" in settings:  # None, which stands for this one
        changed["attack"] = attack
    step = getattr(attack, "step_size", None)
    if step is not None and "attack__step_size" not in settings:
        changed["attack__step_size"] = step * args.eps / attack.eps
    return changed


def _check_attack(attack: Any, settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Raise for a radius of other units, or one that is missing where the norm was changed."""
    if not isinstance(attack, BoundedAttack):
        return  # none, or what training refuses
    attack._validate()
    owner = "--eps" if args.eps is not None else "the attack in training"
    check_radius(attack.eps, attack.norm, PIXELS, owner)
    name = dict(args.set).get("attack")
    given = (
        args.eps is not None
        or "attack__eps" in settings
        or (isinstance(name, str) and has_own_radius(name))
    )
    if attack.norm != "linf" and ("attack__norm" in settings or name) and not given:
        raise ValueError(
            f"an attack in {attack.norm} needs --eps, such as --eps 0.5: {attack.eps:.3g} is a "
            "radius in linf"
        )
