"""A grid search to be interrupted: ``python searched.py folder results n_jobs``."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from robust_ensembles import AdversarialEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_scoring

MAX_EPOCHS = 12
# three candidates on two splits, and the best one on everything
ALL_EPOCHS = 7 * MAX_EPOCHS


class Tally(Callback):
    """A line in a file for each epoch, of all processes."""

    def __init__(self, path):
        self.path = path

    def on_epoch_end(self, net, **kwargs):
        with open(self.path, "a") as file:
            file.write(f"{net.lr}\n")


def search(folder, n_jobs):
    """Unfitted; its checkpoints and the tally are in the folder."""
    estimator = AdversarialEnsembleClassifier(
        attack=PGD(eps=0.05, n_steps=3),
        module_params={"hidden_sizes": (32,)},
        max_epochs=MAX_EPOCHS,
        batch_size=32,
        device="cpu",
        random_state=0,
        checkpoint_dir=f"{folder}/{{fit}}",
        callbacks=[Tally(f"{folder}/epochs")],
    )
    return GridSearchCV(
        estimator,
        {"lr": [0.001, 0.01, 0.03]},
        scoring=robust_scoring("fgsm", "pgd5", eps=0.05),
        refit="worst",
        cv=2,
        n_jobs=n_jobs,
        error_score="raise",
    )


def data():
    X, y = load_digits_images()
    return X[:300].reshape(300, -1), y[:300]


def results(fitted):
    """What does not depend on the time that was taken."""
    kept = {n: np.ma.getdata(v).tolist() for n, v in fitted.cv_results_.items() if "time" not in n}
    weights = [float(w.double().sum()) for w in fitted.best_estimator_.module_.parameters()]
    return {"cv_results_": kept, "weights": weights}


def main():
    torch.set_num_threads(1)
    folder, path, n_jobs = sys.argv[1:]
    fitted = search(folder, int(n_jobs)).fit(*data())
    Path(path).write_text(json.dumps(results(fitted)))


if __name__ == "__main__":
    main()
