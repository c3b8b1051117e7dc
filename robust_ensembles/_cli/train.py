"""Command ``train``: train an ensemble on images and save it to a file."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from itertools import count as count_from
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from .. import recipes
from .._checks import one_of
from ..attacks import BoundedAttack
from ..attacks.engine.balls import check_radius
from ..estimators import BaseEnsembleClassifier
from ..metrics import attack_from_name
from ..state.folder import CheckpointFolder
from .data import Images, check_labels, read_for_training
from .output import check_outputs, prints_told, say, tell
from .threat import PIXELS, has_own_radius, words_of

# parameters with an option of their own
_OPTIONS = {
    "max_epochs": "epochs",
    "random_state": "seed",
    "device": "device",
    "checkpoint_dir": "checkpoints",
}
# parameters passed on in dictionaries, checked by the network and the optimizer
_FREE = ("module", "optimizer")
_BOXES = ("clip_values", "attack__clip_values")


def make_estimator(args: argparse.Namespace) -> BaseEnsembleClassifier:
    """Make the estimator that the arguments describe.

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
        twice, is missing, or is in other units than the pixels.
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
    """All parameters given by --set or by their own options."""
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
    """A component, or the default one in place of None."""
    part = settings.get(name, getattr(estimator, name))
    if part is None and name == "attack":
        return estimator.default_attack
    return part


def _of_eps(
    estimator: BaseEnsembleClassifier, settings: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Settings from ``--eps``: the training attack's radius, and step sizes in proportion."""
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
        changed["attack"] = clone(attack)
    step = getattr(attack, "step_size", None)
    if step is not None and "attack__step_size" not in settings:
        changed["attack__step_size"] = step * args.eps / attack.eps
    return changed


def _check_attack(attack: Any, settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Raise for a radius in other units, or a missing one after a change of the norm."""
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


def run(args: argparse.Namespace) -> int:
    """Train, save, and measure on the held-out images."""
    _check_output(args)
    estimator = make_estimator(args)
    training, held_out = read_for_training(args)
    check_labels(held_out, np.unique(training.y), training.about)
    if held_out.X.shape[1:] != training.X.shape[1:]:
        raise ValueError(
            f"{held_out.about}: images of shape {held_out.X.shape[1:]}, but {training.about}: "
            f"{training.X.shape[1:]}"
        )
    tell(
        f"training {type(estimator).__name__} on {len(training.y)} images {training.X.shape[1:]} "
        f"of {len(np.unique(training.y))} classes: {training.about}"
    )
    with _kept(estimator, args), prints_told():
        estimator.set_params(verbose=int(not args.quiet))
        estimator.fit(training.X, training.y)
    _save(estimator, args.output)
    say(
        f"{args.output}: {type(estimator).__name__} of {_networks(estimator)}, "
        f"{estimator.n_iter_} of {estimator.max_epochs} epochs, "
        f"{sum(estimator.history_[:, 'dur']):.0f} s on {estimator.device_}"
    )
    accuracy = estimator.score(held_out.X, held_out.y)
    say(f"clean accuracy {accuracy:.3f} on {len(held_out.y)} images: {held_out.about}")
    say("Nothing is known yet of what attacks do to it. Next:")
    say(f"  {args.prog} {shlex.join(_next_words(estimator, held_out, args))}")
    return 0


def _networks(estimator: BaseEnsembleClassifier) -> str:
    """The members counted by class name, such as 3 LeNet5."""
    counts = Counter(type(member).__name__ for member in estimator.estimators_)
    return " and ".join(f"{number} {name}" for name, number in counts.items())


def _next_words(
    estimator: BaseEnsembleClassifier, held_out: Images, args: argparse.Namespace
) -> list[str]:
    """The command that attacks the trained ensemble with its training norm and radius."""
    words = ["evaluate", str(args.output), *held_out.words]
    threat = words_of(training_attack(estimator))
    return [*words, "--attacks", "fgsm", "pgd20", "autoattack", *threat]


def _check_output(args: argparse.Namespace) -> None:
    """Raise, before any training, for a file that could not be written after it."""
    inputs = [path for path in (args.data, args.test) if path is not None]
    check_outputs({"--output": args.output}, inputs, folders={"--checkpoints": args.checkpoints})
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists: give another --output, or --overwrite")


def _save(estimator: BaseEnsembleClassifier, path: Path) -> None:
    """Save the trained ensemble, without the settings of this run of the program."""
    estimator.set_params(verbose=0)
    estimator.save(path)


@contextmanager
def _kept(estimator: BaseEnsembleClassifier, args: argparse.Namespace) -> Iterator[None]:
    """Save the ensemble if the training within the block is stopped early."""
    try:
        yield
    except BaseException:
        begun = hasattr(estimator, "net_")
        epochs = estimator.n_iter_ if begun else 0
        if begun and _has_epochs(args.checkpoints):
            tell(f"stopped: {args.checkpoints} has what was finished; the same command goes on")
        elif epochs:
            partial = _free_name(args.output)
            _save(estimator, partial)
            tell(
                f"stopped: {partial} has the ensemble as it was then, after {epochs} whole epochs; "
                "with --checkpoints DIR a training can be resumed"
            )
        elif begun:
            tell("stopped within the first epoch: nothing is kept")
        raise


def _has_epochs(checkpoints: Path | None) -> bool:
    """Whether a folder has a checkpoint to resume from."""
    return checkpoints is not None and CheckpointFolder(checkpoints).has_epochs()


def _free_name(output: Path) -> Path:
    """An unused file name for an unfinished ensemble: an earlier one may be better."""
    ends = chain(["partial"], (f"partial-{n}" for n in count_from(2)))
    names = (output.with_name(f"{output.stem}.{end}{output.suffix}") for end in ends)
    return next(name for name in names if not name.exists())
