"""Reproductions of a few images and steps, for `test_reproduce*.py`, which find `benchmarks`."""

import numpy as np

from benchmarks.reproduce import _data, _plan, _published, _run
from benchmarks.reproduce._budget import Budget
from benchmarks.reproduce._published import Column
from robust_ensembles import VanillaEnsembleClassifier

TINY = Budget(epochs=1, seeds=1, images=12, train_images=64)


def synthetic(dataset, archive=None):
    """Ten patterns with noise, 8 x 8 pixels; as many test images as the real ones."""
    rng = np.random.default_rng(0)
    channels = 1 if "mnist" in dataset else 3
    patterns = rng.integers(0, 256, (10, channels, 8, 8))

    def images(n):
        y = np.arange(n) % 10
        X = patterns[y] + rng.normal(0, 40, (n, channels, 8, 8))
        return np.clip(X, 0, 255).astype(np.uint8), y

    return _data.Images("Synthetic", *images(300), *images(10_000))


def small_estimator(epochs=1):
    return VanillaEnsembleClassifier(
        module="mlp",
        module_params={"hidden_sizes": (8,)},
        max_epochs=epochs,
        device="cpu",
        random_state=0,
    )


def planned(paper, name, budget=TINY, **settings):
    return _plan.parts(_published.read(paper, name), budget, **settings)


def task(paper, name, budget, figure=None, **settings):
    table = figure.table if figure else _published.read(paper, name)
    parts = _plan.parts(table, budget, **settings)
    ablations = settings.get("ablations", False)
    return _run.Task(table, budget, parts, ablations, f"{paper}_{table.name}", "how", figure)


def fill(job, shop, value):
    """Keep numbers as if they had been measured; `value` gives fractions."""
    for part in job.parts:
        for unit in job.units(part, list):
            for row in part.rows:
                for seed, model in enumerate(row.models):
                    rows = [
                        {
                            "attack": column.attack,
                            "eps": column.eps,
                            "metric": metric,
                            "faithful": value(row.name, seed) + (metric == "conditional") * 0.1,
                            "sound": value(row.name, seed) - 0.1,
                            "n_samples": 10_000,
                            "published": metric == "conditional" or part.paper != "cldl",
                        }
                        for column in [Column("clean", 0.0), *part.columns]
                        for metric in ("conditional", "unconditional")
                    ]
                    if part.paper != "cldl":
                        rows = [row for row in rows if row["metric"] == "unconditional"]
                    shop.cells.write(model.key, unit.name, rows, 1.0, ["a quirk"])
