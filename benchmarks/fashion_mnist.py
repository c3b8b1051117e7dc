"""Fashion-MNIST, 3 x LeNet5: Vanilla, CLDL, NCEn and CEAT in the white box and by transfer.

Each model is trained once and kept in ``--models``; the parts can run side by side::

    python -m benchmarks.fashion_mnist train vanilla
    python -m benchmarks.fashion_mnist search
    python -m benchmarks.fashion_mnist evaluate
    python -m benchmarks.fashion_mnist all
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from torch import Tensor

from robust_ensembles import (
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD, is_broken
from robust_ensembles.datasets import load_fashion_mnist
from robust_ensembles.metrics import robust_scoring
from robust_ensembles.training import RandomHorizontalFlip

from . import _evaluate, _report, _store

log = logging.getLogger(__name__)

EPS = 0.1
N_TEST = 1000
N_STRONG = 300  # images for the strongest attack, a check that PGD-20 has converged
EPOCHS = 6
# the published recipe: Adam 1e-3, weight decay 1e-4, x0.1 after 10 and 20 of 30 epochs, flips
RECIPE: dict[str, Any] = {
    "module": "lenet5",
    "module_params": {"embedding_size": 64},
    "optimizer_params": {"weight_decay": 1e-4, "eps": 1e-7},
    "lr": 1e-3,
    "batch_size": 128,
    "max_epochs": EPOCHS,
    "lr_milestones": [EPOCHS // 3, 2 * EPOCHS // 3],
    "augmentation": [RandomHorizontalFlip()],
    "device": "auto",
}
CEAT_EPOCHS = 2
SEARCH: dict[str, list[float]] = {"lambda_cos": [0.02, 0.2, 0.5], "lambda_norm": [0.0, 0.1]}


def _ncen(models: Path) -> NCEnEnsembleClassifier:
    found = json.loads((models / "search.json").read_text())["best_params"]
    return NCEnEnsembleClassifier(**RECIPE, **found, random_state=0)


METHODS: dict[str, Callable[[Path], Any]] = {
    "vanilla": lambda _: VanillaEnsembleClassifier(**RECIPE, random_state=0),
    "cldl": lambda _: CLDLEnsembleClassifier(**RECIPE, gamma=3, alpha=2, beta=4, random_state=0),
    "ncen": _ncen,
    "ceat": lambda _: CEATEnsembleClassifier(
        **{**RECIPE, "max_epochs": CEAT_EPOCHS, "lr_milestones": [CEAT_EPOCHS - 1]},
        attack=PGD(eps=EPS, n_steps=5, step_size=0.03),
        random_state=0,
    ),
}
SURROGATES: dict[str, Callable[[Path], Any]] = {
    "surrogate3": lambda _: VanillaEnsembleClassifier(**RECIPE, n_estimators=3, random_state=1003)
}


def train(name: str, models: Path) -> None:
    """Train one model on all 60,000 images and keep it."""
    X, y = load_fashion_mnist("train")
    _store.train({**METHODS, **SURROGATES}[name](models), X, y, models, name)


def search(models: Path) -> None:
    """NCEn's weights, by the package's own search on robust accuracy."""
    X, y = load_fashion_mnist("train")
    X, y = X[:12_000], y[:12_000]
    base = NCEnEnsembleClassifier(
        **{**RECIPE, "max_epochs": 4, "lr_milestones": [3]}, random_state=0
    )
    grid = GridSearchCV(
        base,
        SEARCH,
        scoring=robust_scoring("pgd20", eps=EPS),
        refit=False,
        cv=ShuffleSplit(1, test_size=2_000, random_state=0),
        error_score="raise",
    ).fit(X, y)
    results = {k: np.asarray(v).tolist() for k, v in grid.cv_results_.items() if "mean_test" in k}
    best = int(np.argmax(grid.cv_results_["mean_test_worst"]))
    params = grid.cv_results_["params"]
    payload = {"best_params": params[best], "params": params, "results": results}
    (models / "search.json").write_text(json.dumps(payload, indent=1))
    log.info("search: %s", payload)


def _white_box(stored: _store.Stored, x: Tensor, y: Tensor) -> dict[str, Any]:
    module = stored.model.as_module()
    row = _evaluate.white_box(module, x, y, (EPS / 2, EPS))
    few, strong = slice(N_STRONG), PGD(eps=EPS, n_steps=100, n_restarts=3)
    unbroken = ~is_broken(module, strong(module, x[few], y[few]), y[few])
    row[f"white PGD-100 x 3, first {N_STRONG}"] = _evaluate.percent(unbroken)
    return row


def _effort(stored: _store.Stored) -> dict[str, Any]:
    epochs = stored.model.n_iter_
    return {"s/epoch": round(stored.seconds / epochs), "epochs": epochs}


def evaluate(models: Path) -> None:
    """The table, into ``results``."""
    X, labels = (part[:N_TEST] for part in load_fashion_mnist("test"))
    x, y = _evaluate.tensors(X, labels)
    surrogates = [_store.load(models, name).model for name in SURROGATES]
    stored = {
        name: _store.load(models, name) for name in METHODS if _store.is_trained(models, name)
    }
    targets = {name: one.model for name, one in stored.items()}
    transferred = _evaluate.transferred(targets, surrogates, X, labels, EPS)
    rows = [
        {"method": name, **_white_box(one, x, y), **transferred[name], **_effort(one)}
        for name, one in stored.items()
    ]
    found = json.loads((models / "search.json").read_text())
    _report.write(
        "fashion_mnist",
        "Fashion-MNIST, 3 x LeNet5: white box and transfer",
        "python -m benchmarks.fashion_mnist all",
        rows,
        search=found,
        about=(
            f"Trained on all 60,000 images, tested on the first {N_TEST} test images; percent of "
            "all of them unless it says of clean-correct. White box: worst of PGD-20 on the "
            "margin of the mean probability and on the mean member cross-entropy. Transfer "
            "(protocol E1): worst over a separately trained vanilla ensemble of 3 "
            "members and two losses, PGD also over 3 seeds; 10 steps of eps / 5. Seed 0. "
            "Seconds are of one thread on a machine that did other things meanwhile."
        ),
    )


def main() -> None:
    """Run one part, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["train", "search", "evaluate", "all"])
    parser.add_argument("names", nargs="*", help="models to train; all by default")
    parser.add_argument("--models", type=Path, default=Path("benchmark-models"))
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.models.mkdir(exist_ok=True)
    _evaluate.prepare_torch(arguments.threads)
    if arguments.part in ("search", "all"):
        search(arguments.models)
    if arguments.part in ("train", "all"):
        for name in arguments.names or [*SURROGATES, *METHODS]:
            train(name, arguments.models)
    if arguments.part in ("evaluate", "all"):
        evaluate(arguments.models)


if __name__ == "__main__":
    main()
