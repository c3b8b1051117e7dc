"""What a row of a paper's table trains: a recipe, and what the paper's code changes in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from robust_ensembles import CollaborativeCalibration, recipes
from robust_ensembles.estimators import EnsembleParameters
from robust_ensembles.training import GaussianNoise

from ._networks import SoftmaxInTraining
from ._published import Setting

_NUMBERS = re.compile(r"\(([\d.,]+)\)$")
_COMPONENTS = {
    "none": {"lam": 0.0, "mu": 0.0},
    "L_adv": {"lam": 0.0, "mu": 5.0, "mu_exp": 0.0},
    "e^D+L_adv": {"lam": 0.0, "mu": 5.0},
    "L_adv+L_nat": {"lam": 1.0, "mu": 5.0, "lam_exp": 0.0, "mu_exp": 0.0},
    "e^D+L_adv+L_nat": {"lam": 1.0, "mu": 5.0},
}
# torch before 1.12, which CLDL's code asks for, shrinks the cosines of short gradients
_OLD_TORCH = {"cos_eps_mode": "torch1"}
_CLDL_CHANGES: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "adp": {},
    "dverge": {"formulation": "released"},
    "gal": {"formulation": "released", **_OLD_TORCH},
    # "released" would be TRS's own code; CLDL's has another one, which the recipe is
    "trs": _OLD_TORCH,
    "cldl": {"formulation": "released", **_OLD_TORCH},
}
_CLDL_BEST = {
    "mnist": "CLDL(3,4,4)",
    "fashion-mnist": "CLDL(3,2,4)",
    "cifar10": "CLDL(4,2,4)",
}
# by the rule of eps / 2; CLDL's code has noise on CIFAR-10 only
_NOISE = {"mnist": 0.15, "fashion-mnist": 0.15, "cifar10": 0.045}


@dataclass(frozen=True)
class Method:
    """A method by its recipe.

    Parameters
    ----------
    name : str
        As the table calls it.
    method : str
        A key of `recipes.METHODS`.
    source : str
        Of the recipe.
    changes : dict
        Parameters that win over the recipe's.
    settings_of : str, default=None
        The method whose recipe's training settings are taken, where `method` has none by that
        source.
    why : str, default=""
        What an ablation shows.
    """

    name: str
    method: str
    source: str
    changes: dict[str, Any] = field(default_factory=dict)
    settings_of: str | None = None
    why: str = ""

    def estimator(self, setting: Setting, *, epochs: int | None = None, **overrides: Any) -> Any:
        """An unfitted estimator.

        Parameters
        ----------
        setting : Setting
        epochs : int, default=None
            None is the recipe's.
        **overrides
            Further parameters.
        """
        params = {**self.changes, "n_estimators": setting.members, **overrides}
        if epochs is not None:
            params["max_epochs"] = epochs
        if self.settings_of is None:
            made = recipes.get(self.method, setting.dataset, source=self.source, **params)
        else:
            made = with_settings_of(
                self.settings_of, self.method, setting.dataset, self.source, **params
            )
        return _with_network(made, setting.network)


def with_settings_of(
    host: str, method: str, dataset: str, source: str | None = None, **params: Any
) -> Any:
    """A method that has no recipe there, with the training settings of another's.

    Parameters
    ----------
    host : str
        Whose recipe is taken.
    method : str
        What is trained.
    dataset : str
    source : str, default=None
        Of the recipe.
    **params
        Parameters that win.
    """
    epochs = {name: params[name] for name in ("max_epochs",) if name in params}
    recipe = recipes.get(host, dataset, source=source, **epochs)
    shared = {f.name: getattr(recipe, f.name) for f in fields(EnsembleParameters)}
    return recipes.METHODS[method](**{**shared, **params})


def published(paper: str, name: str) -> Method | None:
    """What a row of a paper's table trains; None for what the package does not have."""
    made = _READERS[paper](name)
    if made is None or made.method not in recipes.METHODS:
        return None
    if paper == "ncen" and made.method != "ncen":
        return _softmax_in_training(made)
    return made


def surrogate(members: int) -> Method:
    """A vanilla ensemble that examples are made on, with its seed; see `train_surrogates`."""
    return Method(f"surrogate{members}", "vanilla", "cldl", {"random_state": 1000 + members})


def own(paper: str, name: str) -> bool:
    """Whether a method is the paper's own."""
    return name.lower().startswith(paper)


def ablations(paper: str, setting: Setting) -> list[Method]:
    """Rows that the papers do not have, and that settle where their numbers come from."""
    return _ABLATIONS[paper](setting)


def _cldl(name: str) -> Method | None:
    method, _, _ = name.lower().partition("(")
    if method not in _CLDL_CHANGES:
        return None
    weights = dict(zip(("gamma", "alpha", "beta"), _numbers(name), strict=False))
    return Method(name, method, "cldl", {**_CLDL_CHANGES[method], **weights})


def _ncen(name: str) -> Method | None:
    method = name.lower().partition("(")[0]
    weights = dict(zip(("lambda_cos", "lambda_norm"), _numbers(name), strict=False))
    changes = {"formulation": "released", **weights}
    return Method(name, {"bl": "vanilla"}.get(method, method), "ncen", changes)


def _ceat(name: str) -> Method | None:
    if name == "Baseline":
        return Method(name, "vanilla", "ceat", settings_of="ceat")
    host, plus, _ = name.partition("+L^D")
    if plus:
        calibration = CollaborativeCalibration(lam=1.0, mu=5.0)
        return Method(name, host.lower(), "ceat", {"calibration": calibration})
    if name.startswith("CEAT["):
        return Method(name, "ceat", "ceat", dict(_COMPONENTS[name[5:-1]]))
    weights = dict(zip(("lam", "mu"), _numbers(name), strict=False))
    return Method(name, name.lower().partition("(")[0], "ceat", weights)


def _numbers(name: str) -> list[float]:
    found = _NUMBERS.search(name)
    return [float(number) for number in found[1].split(",")] if found else []


def _softmax_in_training(made: Method) -> Method:
    """NCEn's code ends the members of all methods in a softmax; ours has it for NCEn only."""
    return replace(made, changes={**made.changes, "module": SoftmaxInTraining})


def _with_network(estimator: Any, network: str) -> Any:
    """The estimator with the networks of a table instead of the recipe's."""
    names = network.split("+")
    params = dict(estimator.module_params or {})
    if estimator.module is SoftmaxInTraining:
        depths = [{**params, "depth": int(name.removeprefix("resnet"))} for name in names]
        if len(names) == 1:
            return estimator.set_params(module_params=depths[0])
        return estimator.set_params(module=[SoftmaxInTraining] * len(names), module_params=depths)
    if network == estimator.module:
        return estimator
    return estimator.set_params(module=names[0] if len(names) == 1 else names)


def _cldl_ablations(setting: Setting) -> list[Method]:
    best = _cldl(_CLDL_BEST[setting.dataset])
    assert best is not None
    # where CLDL and GAL have noise and leaky ReLU, and nobody else has
    smooth = setting.dataset == "cifar10"
    plain = Method("Vanilla", "vanilla", "cldl", why="no defence; the surrogates are such")
    noisy = replace(
        _smoothed(plain, setting, True),
        name="Vanilla + noise + LeakyReLU",
        why="whether noise and leaky ReLU explain what CLDL gains",
    )
    toggled = replace(
        _smoothed(best, setting, not smooth),
        name=f"{best.name} {'without' if smooth else 'with'} noise and LeakyReLU",
        why="the same from the other side",
    )
    printed = replace(
        best,
        name=f"{best.name}, the paper's formulas",
        changes={**best.changes, "formulation": "paper", "cos_eps_mode": "torch2"},
        why="what is printed, instead of what the code computes",
    )
    return [plain, noisy, toggled, printed]


def _smoothed(made: Method, setting: Setting, smooth: bool) -> Method:
    """With noise in training and leaky ReLU, or without."""
    recipe = made.estimator(setting)
    augmentation = [t for t in recipe.augmentation if not isinstance(t, GaussianNoise)]
    if smooth:
        augmentation.append(GaussianNoise(_NOISE[setting.dataset]))
    activation = "leaky_relu" if smooth else "relu"
    changes = {"augmentation": augmentation, "module__activation": activation}
    return replace(made, changes={**made.changes, **changes})


def _ncen_ablations(setting: Setting) -> list[Method]:
    why = "the softmax that is one too many, left out in training"
    released = {"formulation": "released"}
    on_logits = {**released, "ce_on_probabilities": False}
    return [
        Method("BL, CE on logits", "vanilla", "ncen", released, why=why),
        Method("NCEn, CE on logits", "ncen", "ncen", on_logits, why=why),
        Method("NCEn, the paper's formulas", "ncen", "ncen", why="Eq. 10, and CE on logits"),
    ]


def _ceat_ablations(setting: Setting) -> list[Method]:
    whys = {
        "none": "plain adversarial training of the ensemble, by CEAT's recipe",
        "L_adv+L_nat": "the distances without the weights that give the method its name",
    }
    return [
        Method(f"CEAT[{name}]", "ceat", "ceat", dict(_COMPONENTS[name]), why=why)
        for name, why in whys.items()
    ]


_READERS: dict[str, Callable[[str], Method | None]] = {"cldl": _cldl, "ncen": _ncen, "ceat": _ceat}
_ABLATIONS: dict[str, Callable[[Setting], list[Method]]] = {
    "cldl": _cldl_ablations,
    "ncen": _ncen_ablations,
    "ceat": _ceat_ablations,
}
