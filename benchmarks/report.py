"""The robustness report over the models of `benchmarks.defences`, with its pictures.

Goes on where it was interrupted: finished measurements stand in ``--models/report.json``::

    python -m benchmarks.report --models benchmark-models
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_fashion_mnist
from robust_ensembles.inspection import (
    AttackComparisonDisplay,
    RobustnessCurveDisplay,
    RobustnessReport,
    TransferabilityDisplay,
    robustness_report,
    transferability_matrix,
)

from . import _evaluate, _report, _store
from .defences import OPTIONS

log = logging.getLogger(__name__)

NAME = "fashion_mnist_report"
EPS = 0.1
ATTACKS = ("fgsm", "pgd20", "mora", "autoattack1000")  # 1000 queries of Square: time
CURVES = ("vanilla", "adp", "gal", "trs", "cldl", "ncen-searched", "adversarial", "ceat")
RADII = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
MEMBERS = ("vanilla", "gal", "cldl", "ceat")
MEMBER_EPS = 0.05

Images = NDArray[Any]


def measure(models: dict[str, Any], X: Images, y: Images, path: Path) -> RobustnessReport:
    """The report; its JSON is the memory of an interrupted run."""
    return robustness_report(models, X, y, ATTACKS, eps=EPS, n_sanity=30, path=path, progress=True)


def draw_attacks(report: RobustnessReport) -> str:
    """Accuracy of each method under each attack."""
    masks = report.masks
    names = list(masks)
    attacks = [*ATTACKS, "worst"]
    accuracy = np.array([[masks[name][attack].mean() for attack in attacks] for name in names])
    display = AttackComparisonDisplay(
        accuracy,
        np.array([masks[name]["clean"].mean() for name in names]),
        n_samples=len(masks[names[0]]["clean"]),
        names=names,
        attacks=attacks,
    )
    figure, axes = plt.subplots(figsize=(13, 4.2), layout="constrained")
    display.plot(ax=axes)
    axes.tick_params(axis="x", rotation=25)
    return _save(figure, "attacks")


def draw_curves(models: dict[str, Any], X: Images, y: Images) -> str:
    """Accuracy against eps, PGD-20."""
    chosen = {name: models[name] for name in CURVES if name in models}
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    RobustnessCurveDisplay.from_estimators(chosen, X, y, attack=PGD(), eps=RADII, ax=axes)
    return _save(figure, "curves")


def draw_members(models: dict[str, Any], X: Images, y: Images) -> str:
    """Transfer between the members of some methods."""
    chosen = [name for name in MEMBERS if name in models]
    figure, axes = plt.subplots(1, len(chosen), figsize=(4.4 * len(chosen), 3.6))
    for i, (name, ax) in enumerate(zip(chosen, np.atleast_1d(axes), strict=True)):
        matrix = transferability_matrix(models[name], X, y, attack=PGD(eps=MEMBER_EPS))
        TransferabilityDisplay.from_matrix(matrix).plot(ax=ax, colorbar=i == len(chosen) - 1)
        ax.set_title(name)
    figure.tight_layout()
    return _save(figure, "members")


def draw_methods(models: dict[str, Any], X: Images, y: Images) -> str:
    """Transfer from every method to every other."""
    figure, axes = plt.subplots(figsize=(9, 7.5), layout="constrained")
    matrix = transferability_matrix(models, X, y, attack=PGD(eps=EPS), samples="correct_for_pair")
    TransferabilityDisplay.from_matrix(matrix).plot(ax=axes)
    return _save(figure, "methods")


def _save(figure: Any, what: str) -> str:
    """Write a picture, and say what it is called."""
    path = _report.RESULTS / f"{NAME}_{what}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name


def write(report: RobustnessReport, pictures: dict[str, str], n_images: int) -> None:
    """The report and its pictures, as Markdown and JSON."""
    machine = ", ".join(f"{k} {v}" for k, v in _report.environment().items() if v is not None)
    lines = [
        "# Robustness report: twelve defences on Fashion-MNIST, 3 x LeNet5",
        "`python -m benchmarks.report`, with the models of "
        "`python -m benchmarks.defences train --images 10000 --epochs 10`",
        f"The first {n_images} test images, L-infinity. What the models are is said in "
        "[defences.md](defences.md).",
        *(f"{caption}\n\n![{caption}]({name})" for caption, name in pictures.items()),
        re.sub("^#", "##", report.to_markdown(), flags=re.MULTILINE),  # a part of this page
        machine,
    ]
    (_report.RESULTS / f"{NAME}.md").write_text("\n\n".join(lines) + "\n")
    report.to_json(_report.RESULTS / f"{NAME}.json")


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("benchmark-models"))
    parser.add_argument("--n-images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    mpl.use("agg")
    _evaluate.prepare_torch(arguments.threads)
    models = {
        name: _store.load(arguments.models, name).model
        for name in OPTIONS
        if _store.is_trained(arguments.models, name)
    }
    X, y = (part[: arguments.n_images] for part in load_fashion_mnist("test"))
    report = measure(models, X, y, arguments.models / "report.json")
    pictures = {
        "Accuracy under each attack": draw_attacks(report),
        "Accuracy against the radius, PGD-20": draw_curves(models, X, y),
        f"Transfer between members, PGD-20 at eps {MEMBER_EPS}": draw_members(models, X, y),
        f"Transfer between methods, PGD-20 at eps {EPS}": draw_methods(models, X, y),
    }
    write(report, pictures, len(y))


if __name__ == "__main__":
    main()
