"""Choose a training attack and CEAT's mu by cross-validated robust accuracy.

The estimator stands at the end of a Pipeline. The attacks act on the raw pixels and pass through
the scaler, so eps keeps its meaning whatever the scaler does.

CEAT's own training attack works behind the scaler, in scaled units: its eps is another number.
MaxAbsScaler divides each pixel by its largest value and leaves all of them in [0, 1]; pixels that
never reach 1 (there are some at the border of the digits) are stretched.

Run with ``python examples/grid_search.py``; about half a minute on a CPU.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from robust_ensembles import CEATEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_scoring

EPS = 0.1
SEARCH = {
    "ceatensembleclassifier__mu": [1.0, 5.0],
    "ceatensembleclassifier__attack__eps": [0.05, 0.1],
}
TRAINING: dict[str, Any] = {
    "module": "mlp",
    "module_params": {"hidden_sizes": (128, 64)},
    "max_epochs": 10,
    "batch_size": 64,
    "lr": 3e-3,
}


def make_search(**training: Any) -> GridSearchCV:
    """The search over a Pipeline; the best by the worst attack is fitted again on all data."""
    ceat = CEATEnsembleClassifier(attack=PGD(n_steps=5), random_state=0, **(TRAINING | training))
    return GridSearchCV(
        make_pipeline(MaxAbsScaler(), ceat),
        SEARCH,
        scoring=robust_scoring("fgsm", "pgd20", eps=EPS, clip_values=(0, 1)),
        refit="worst",
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
        error_score="raise",
    )


def main() -> None:
    X, y = load_digits_images()
    X = X.reshape(len(X), -1)  # scalers take rows
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=500, stratify=y, random_state=0
    )
    search = make_search().fit(X_train, y_train)

    names = list(search.scorer_)
    table = Table("mu", "attack eps", *names, title="mean accuracy over the folds (%)")
    for i, params in enumerate(search.cv_results_["params"]):
        means = [100 * search.cv_results_[f"mean_test_{name}"][i] for name in names]
        values = (str(params[key]) for key in SEARCH)
        table.add_row(*values, *(f"{mean:.1f}" for mean in means))
    console = Console()
    console.print(table)
    for name, scorer in search.scorer_.items():
        accuracy = 100 * scorer(search.best_estimator_, X_test, y_test)
        console.print(f"best estimator, 500 test images, {name}: {accuracy:.1f} %")


if __name__ == "__main__":
    main()
