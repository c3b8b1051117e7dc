"""
Do examples transfer between members?
=====================================

An ensemble is only harder to fool than one network if what fools one member does not fool the
others. A transfer matrix shows it: rows are the members that an example was made for, columns those
that it was tried on.
"""

# %%
from typing import Any

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from robust_ensembles import GALEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import TransferabilityDisplay, transferability_matrix

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)
common: dict[str, Any] = {
    "module": "mlp",
    "module_params": {"activation": "leaky_relu"},
    "lr": 3e-3,
    "batch_size": 64,
    "max_epochs": 15,
    "random_state": 0,
}
vanilla = VanillaEnsembleClassifier(**common).fit(X_train, y_train)
gal = GALEnsembleClassifier(lam=0.5, **common).fit(X_train, y_train)

# %%
# Only images that all members classify correctly count, as in the papers on DVERGE and CLDL. The
# last column is the ensemble. The diagonal is the white box: examples tried on the member that they
# were made for.
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
figure.subplots_adjust(bottom=0.25, wspace=0.75)
for ax, (name, clf) in zip(axes, {"vanilla": vanilla, "GAL": gal}.items(), strict=True):
    display = TransferabilityDisplay.from_estimator(
        clf, X_test, y_test, attack=PGD(eps=0.1, n_steps=20), ax=ax
    )
    ax.set_title(name)
plt.show()

# %%
# The numbers themselves, and how many images they are taken over:
matrix = transferability_matrix(gal, X_test, y_test, attack=PGD(eps=0.1, n_steps=20))
print(matrix.to_frame().round(2))
print(f"{matrix.n_samples[0, 0]} images, {matrix.settings['measure']}")

# %%
# Whole models
# ------------
# Given a dict, the same function compares models instead of members. Numbers off the diagonal are
# black-box attacks. Little transfer says nothing about the white box, which is the diagonal.
between = transferability_matrix(
    {"vanilla": vanilla, "GAL": gal}, X_test, y_test, attack=PGD(eps=0.1, n_steps=20)
)
TransferabilityDisplay.from_matrix(between)
plt.show()
