"""An unfitted estimator from what stands on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from .. import recipes
from .._validation import one_of
from ..estimators import BaseEnsembleClassifier
from ..metrics import attack_from_name
from ._arguments import check_eps

# parameters with an option of their own
_OPTIONS = {
    "max_epochs": "epochs",
    "random_state": "seed",
    "device": "device",
    "checkpoint_dir": "checkpoints",
}
# those that go into dictionaries, which the network and the optimizer judge
_FREE = ("module", "optimizer")


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
        For a parameter that does not exist or is given twice.
    """
    if args.source is not None and args.recipe is None:
        raise ValueError("--source says whose recipe it is: give --recipe, too")
    settings = _settings(args)
    start = _start(args, {})
    _check_names(start, settings)
    if args.eps is not None:
        settings.update(_of_eps(start, settings, args))
    return _start(args, settings)


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
        settings[name] = value
    if isinstance(settings.get("attack"), str):
        settings["attack"] = attack_from_name(settings["attack"], eps=args.eps)
    given = {name: getattr(args, option) for name, option in _OPTIONS.items()}
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


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
    check_eps(args.eps)
    if "attack__eps" in settings:
        raise ValueError("give --eps or --set attack__eps=..., not both")
    if "attack" in settings:
        return {}  # made with this eps
    attack = _part(estimator, settings, "attack") if hasattr(estimator, "attack") else None
    if attack is None:
        way = (
            "give it attacks to train on with --set attack=pgd10"
            if hasattr(estimator, "attack")
            else "leave --eps away, and give it to evaluate"
        )
        raise ValueError(
            f"--eps is the radius of attacks in training, but {args.method} trains on images as "
            f"they are: {way}"
        )
    changed: dict[str, Any] = {"attack__eps": args.eps}
    step = getattr(attack, "step_size", None)
    if step is not None and "attack__step_size" not in settings:
        changed["attack__step_size"] = step * args.eps / attack.eps
    return changed
