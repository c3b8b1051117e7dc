"""
A search over several processes or machines
===========================================

scikit-learn hands the fits of a search to joblib, and joblib to whoever is registered as its
backend. With Dask the same four lines run on the cores of one machine or on a cluster.

Needs ``pip install distributed``.
"""

# %%
# Dask starts worker processes by running this file's module again on some systems. What trains
# therefore stands in a function that is called under ``if __name__ == "__main__"``.
from typing import Any

import joblib
import matplotlib.pyplot as plt
from distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

from robust_ensembles import GALEnsembleClassifier
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_scoring


def make_search(n_jobs: int | None = None) -> GridSearchCV:
    """Two parameters, two folds: eight fits and one more of the best."""
    gal = GALEnsembleClassifier(
        module="mlp",
        module_params={"hidden_sizes": (32,), "activation": "leaky_relu"},
        lr=3e-3,
        batch_size=64,
        max_epochs=3,
        random_state=0,
    )
    return GridSearchCV(
        gal,
        {"lam": [0.1, 0.5], "lr": [1e-3, 3e-3]},
        scoring=robust_scoring("fgsm", "pgd10", eps=0.05),
        refit="worst",
        cv=2,
        n_jobs=n_jobs,
        error_score="raise",
    )


# %%
# One thread a worker
# -------------------
# A process trains with all threads that it is given. Several such processes on one machine wait for
# each other, so each worker gets one thread here. ``processes=False`` keeps the example small: on a
# machine of your own, leave it out, and on a cluster give ``Client`` the address of its scheduler.
def search_on(X: Any, y: Any, **cluster: Any) -> GridSearchCV:
    """Run the search on a Dask cluster."""
    with (
        LocalCluster(threads_per_worker=1, dashboard_address=":0", **cluster) as workers,
        Client(workers),
        joblib.parallel_config(backend="dask"),
    ):
        return make_search(n_jobs=-1).fit(X, y)


# %%
# The result does not depend on where a fit has run: seeds, not workers, decide.
if __name__ == "__main__":
    X, y = load_digits_images()
    X, y = X[:600], y[:600]
    spread = search_on(X, y, n_workers=2, processes=False)
    alone = make_search().fit(X, y)
    print(spread.best_params_)
    same = spread.cv_results_["mean_test_worst"] == alone.cv_results_["mean_test_worst"]
    print(f"same scores as without a cluster: {same.tolist()}")

    figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for name in ("clean", "worst"):
        ax.plot(spread.cv_results_[f"mean_test_{name}"], "o-", label=name)
    candidates = [f"lam {p['lam']}\nlr {p['lr']}" for p in spread.cv_results_["params"]]
    ax.set_xticks(range(len(candidates)), candidates)
    ax.set_ylabel("mean accuracy over the folds")
    ax.legend(frameon=False)
    plt.show()
