"""Four ensembles side by side: how accurate they are, clean and under attack in the white box.

Run by ``make quickstart``, or from a checkout::

    python examples/quickstart.py                        # digits, about a minute on two cores
    python examples/quickstart.py --data fashion-mnist   # some 25 minutes of processor time

Prints one table and writes the numbers and a plot into ``quickstart-results/``.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback

from robust_ensembles import (
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images, load_fashion_mnist
from robust_ensembles.metrics import robust_scoring

# --------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """What a run depends on. Pixels lie in [0, 1], and so do the eps of the attacks."""

    data: str
    n_train: int
    n_test: int
    eps: float  # of the table, and of CEAT's training
    curve_eps: tuple[float, ...]  # of the plot, besides 0 and eps
    training: dict[str, Any]  # the same for every method: 3 members, Adam
    cldl: dict[str, Any]  # gamma, alpha, beta; NCEn and CEAT keep their defaults
    craft: dict[str, Any]  # the PGD that CEAT trains with
    threads: int | None = None  # of torch; None leaves them as they are
    seeds: int = 3


DIGITS = Settings(
    data="digits",
    n_train=1297,
    n_test=500,
    eps=0.1,
    curve_eps=(0.025, 0.05, 0.075, 0.15, 0.2, 0.25),
    training={
        "module": "mlp",
        "module_params": {"hidden_sizes": (128, 64)},
        "max_epochs": 30,
        "batch_size": 64,
        "lr": 3e-3,
    },
    cldl={"gamma": 4.0, "alpha": 2.0, "beta": 4.0},
    craft={"n_steps": 5, "step_size": 0.03},
    threads=1,  # more would wait for each other: the networks are tiny
)
FASHION_MNIST = Settings(
    data="fashion-mnist",
    n_train=5000,
    n_test=500,
    eps=0.05,
    curve_eps=(0.02, 0.1),
    training={
        "module": "lenet5",
        "module_params": {"embedding_size": 64},
        "max_epochs": 6,
        "batch_size": 64,
        "lr": 2e-3,
    },
    cldl={"gamma": 3.0, "alpha": 2.0, "beta": 4.0},
    craft={"n_steps": 5, "step_size": 0.015},
)
SETTINGS = {settings.data: settings for settings in (DIGITS, FASHION_MNIST)}

# name, and how it is drawn: colours of Okabe and Ito, told apart in grey by line and marker
STYLES: dict[str, dict[str, Any]] = {
    "Vanilla": {"color": "#000000", "marker": "o", "linestyle": ":"},
    "CLDL": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "NCEn": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "CEAT": {"color": "#D55E00", "marker": "D", "linestyle": "-"},
}
ATTACKS = {"fgsm": "FGSM", "pgd20": "PGD-20"}
COLUMNS = {"clean": "clean", **ATTACKS, "worst": "worst"}

Data = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64], NDArray[np.int64]]


def make_estimators(settings: Settings) -> dict[str, Any]:
    """The methods to compare, with the same networks and training."""
    attack = PGD(eps=settings.eps, **settings.craft)
    return {
        "Vanilla": VanillaEnsembleClassifier(**settings.training),
        "CLDL": CLDLEnsembleClassifier(**settings.training, **settings.cldl),
        "NCEn": NCEnEnsembleClassifier(**settings.training),
        "CEAT": CEATEnsembleClassifier(**settings.training, attack=attack),
    }


# ------------------------------------------------------------------------------------ measurement


@dataclass(frozen=True)
class Accuracy:
    """One measured number."""

    method: str
    seed: int
    attack: str  # "clean", "fgsm", "pgd20" or "worst" (of the two)
    eps: float
    accuracy: float


class Tick(Callback):
    """skorch callback that reports each finished epoch."""

    def __init__(self, report: Callable[[], None]) -> None:
        self.report = report

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.report()


def load(settings: Settings) -> Data:
    """X_train, X_test, y_train, y_test: the same for every seed."""
    if settings.data == "digits":
        X, y = load_digits_images()
        split = train_test_split(X, y, test_size=500, stratify=y, random_state=0)
        X_train, X_test, y_train, y_test = split
    else:
        X_train, y_train = load_fashion_mnist("train")
        X_test, y_test = load_fashion_mnist("test")
    n, m = settings.n_train, settings.n_test
    return X_train[:n], X_test[:m], y_train[:n], y_test[:m]


def measure(
    settings: Settings, method: str, seed: int, fitted: Any, X: NDArray[Any], y: NDArray[np.int64]
) -> list[Accuracy]:
    """Accuracy of one fitted ensemble: the table's columns, and PGD-20 at each eps of the curve."""

    def row(attack: str, eps: float, accuracy: float) -> Accuracy:
        return Accuracy(method, seed, attack, eps, accuracy)

    scoring = robust_scoring(*ATTACKS, eps=settings.eps)
    rows = [
        row(name, 0.0 if name == "clean" else settings.eps, scorer(fitted, X, y))
        for name, scorer in scoring.items()
    ]
    for eps in settings.curve_eps:
        rows.append(row("pgd20", eps, robust_scoring("pgd20", eps=eps)["pgd20"](fitted, X, y)))
    return rows


def run(settings: Settings, data: Data, console: Console) -> list[Accuracy]:
    """Train every method with every seed, and attack it."""
    X_train, X_test, y_train, y_test = data
    estimators = make_estimators(settings)
    epochs = settings.training["max_epochs"] * len(estimators) * settings.seeds
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, left:"),
        TimeRemainingColumn(),
    )
    results: list[Accuracy] = []
    # a long window: an epoch of one method costs several of another
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        task = progress.add_task("", total=epochs)
        tick = Tick(lambda: progress.advance(task))
        for seed in range(settings.seeds):
            for method, estimator in estimators.items():
                progress.update(task, description=f"{method}, seed {seed}: training")
                estimator.set_params(random_state=seed, callbacks=[tick]).fit(X_train, y_train)
                progress.update(task, description=f"{method}, seed {seed}: attacks")
                results += measure(settings, method, seed, estimator, X_test, y_test)
    return results


def select(results: Sequence[Accuracy], method: str, attack: str, eps: float) -> NDArray[Any]:
    """Accuracies of one method under one attack, one per seed."""
    return np.array(
        [r.accuracy for r in results if (r.method, r.attack, r.eps) == (method, attack, eps)]
    )


def deviation(values: NDArray[Any]) -> Any:
    """Standard deviation over the seeds (the last axis), as a sample's; 0 for a single seed."""
    return values.std(axis=-1, ddof=min(1, values.shape[-1] - 1))


# ----------------------------------------------------------------------------------------- report


def table_rows(settings: Settings, results: Sequence[Accuracy]) -> list[list[str]]:
    """Method, then mean and standard deviation over the seeds (if there are several), in %."""
    rows = []
    for method in STYLES:
        cells = [method]
        for attack in COLUMNS:
            eps = 0.0 if attack == "clean" else settings.eps
            values = 100 * select(results, method, attack, eps)
            width = f" ± {deviation(values):.1f}" if settings.seeds > 1 else ""
            cells.append(f"{values.mean():.1f}{width}")
        rows.append(cells)
    return rows


def caption(settings: Settings, data: Data, seconds: float) -> str:
    """Everything that the numbers depend on, in words."""
    training = settings.training
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = gpu or f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return (
        f"Accuracy in %, {spread(settings)}. {settings.data}, "
        f"{len(data[2])} training and {len(data[3])} test images; 3 members "
        f"({training['module']}), {training['max_epochs']} epochs, Adam {training['lr']:g}; "
        f"white box, L-infinity, eps = {settings.eps:g} (pixels in [0, 1]); worst: per image, of "
        f"the attacks shown. {seconds:.0f} s on {device}; torch {torch.__version__}. "
        "Upper bounds: stronger attacks give lower numbers."
    )


def spread(settings: Settings) -> str:
    """What the numbers are taken over."""
    if settings.seeds == 1:
        return "one training, seed 0"
    return f"mean ± standard deviation over seeds 0 to {settings.seeds - 1}"


def print_table(rows: Sequence[Sequence[str]], text: str, console: Console) -> None:
    table = Table("method", *COLUMNS.values(), caption=text, caption_justify="left", min_width=72)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_markdown(path: Path, rows: Sequence[Sequence[str]], text: str) -> None:
    lines = [["method", *COLUMNS.values()], ["---"] + ["---:"] * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.write_text(f"{table}\n\n{text}\n", encoding="utf-8")


def write_csv(path: Path, results: Sequence[Accuracy]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "attack", "eps", "accuracy"])
        writer.writerows([r.method, r.seed, r.attack, r.eps, r.accuracy] for r in results)


def plot(path: Path, settings: Settings, data: Data, results: Sequence[Accuracy]) -> None:
    """Accuracy against eps: a line for the mean over the seeds, a band of one deviation."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    grid = sorted({0.0, settings.eps, *settings.curve_eps})
    for method, style in STYLES.items():
        attacks = ["clean" if eps == 0 else "pgd20" for eps in grid]
        values = 100 * np.stack(
            [select(results, method, a, e) for a, e in zip(attacks, grid, strict=True)]
        )
        mean, width = values.mean(axis=1), deviation(values)
        low, high = mean - width, mean + width
        axes.fill_between(grid, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(grid, mean, label=method, markersize=5, clip_on=False, **style)
    axes.set_xlabel("radius of the attack, eps (L-infinity; pixels in [0, 1])")
    axes.set_ylabel("accuracy under PGD-20 (%)")
    axes.set_title(
        f"{settings.data}, {len(data[3])} test images, white box\n{spread(settings)}",
        fontsize="medium",
    )
    axes.set_ylim(-2, 102)
    axes.set_xlim(0, grid[-1] * 1.02)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
    """Settings and the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--n-train", type=int, help="training images, the first so many")
    parser.add_argument("--n-test", type=int, help="test images, the first so many")
    parser.add_argument("--epochs", type=int, help="epochs of each training")
    parser.add_argument("--seeds", type=int, help="trainings of each method")
    parser.add_argument("--output", type=Path, default=Path("quickstart-results"))
    given = parser.parse_args(arguments)
    chosen = SETTINGS[given.data]
    changes = {
        name: value
        for name in ("n_train", "n_test", "seeds")
        if (value := getattr(given, name)) is not None
    }
    if given.epochs is not None:
        changes["training"] = {**chosen.training, "max_epochs": given.epochs}
    return replace(chosen, **changes), given.output


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> None:
    settings, output = parse(arguments)
    console = Console()
    start = time.perf_counter()
    data = load(settings)
    with torch_threads(settings.threads):
        results = run(settings, data, console)
    text = caption(settings, data, time.perf_counter() - start)
    rows = table_rows(settings, results)
    print_table(rows, text, console)
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"{settings.data}{end}" for end in (".md", ".csv", "-robustness.png")]
    write_markdown(files[0], rows, text)
    write_csv(files[1], results)
    plot(files[2], settings, data, results)
    for file in files:
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
