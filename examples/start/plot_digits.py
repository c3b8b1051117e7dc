"""
A first robust ensemble
=======================

Three small networks are trained on the digits of scikit-learn, once in the ordinary way and once
on adversarial examples. Both are then attacked by somebody who knows their weights.
"""

# %%
# The data are 8 x 8 grey images with pixels in [0, 1], in the layout of PyTorch: channels come
# before height and width.
from typing import Any

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from robust_ensembles import CEATEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import AttackComparisonDisplay
from robust_ensembles.metrics import robust_accuracy_score

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)
print(X_train.shape, X_train.min(), X_train.max())

# %%
# Two estimators
# --------------
# Both have three members of the same kind. An estimator is built with its parameters and trained
# by ``fit``, as anywhere in scikit-learn. `CEATEnsembleClassifier` makes adversarial examples of
# each batch by the attack that it is given, and trains its members on these.
common: dict[str, Any] = {
    "module": "mlp",
    "lr": 3e-3,
    "batch_size": 64,
    "max_epochs": 15,
    "random_state": 0,
}
vanilla = VanillaEnsembleClassifier(**common).fit(X_train, y_train)
ceat = CEATEnsembleClassifier(attack=PGD(eps=0.1, n_steps=5), **common).fit(X_train, y_train)
print(f"clean accuracy: vanilla {vanilla.score(X_test, y_test):.3f}, ", end="")
print(f"CEAT {ceat.score(X_test, y_test):.3f}")

# %%
# An adversarial example
# ----------------------
# ``generate`` changes no pixel by more than eps = 0.1. The digits remain readable, but the vanilla
# ensemble takes several of them for others.
attack = PGD(eps=0.1, n_steps=20)
X_adv = attack.generate(vanilla, X_test[:8], y_test[:8])
answers = vanilla.predict(X_adv)

figure, axes = plt.subplots(2, 8, figsize=(8, 2.6), layout="constrained")
for column in range(8):
    axes[0, column].imshow(X_test[column, 0], cmap="gray_r", vmin=0, vmax=1)
    axes[0, column].set_title(f"{y_test[column]}", fontsize="small")
    axes[1, column].imshow(X_adv[column, 0], cmap="gray_r", vmin=0, vmax=1)
    axes[1, column].set_title(f"read as {answers[column]}", fontsize="small")
for ax in axes.flat:
    ax.axis("off")
plt.show()

# %%
# Robust accuracy
# ---------------
# The fraction of all test images that are right before *and* after the attack.
for name, clf in (("vanilla", vanilla), ("CEAT", ceat)):
    print(f"{name}: {robust_accuracy_score(clf, X_test, y_test, attack=attack):.3f}")

# %%
# A single attack only gives an upper bound. The display runs several, with their worst for each
# image, and draws the interval that 300 images allow.
AttackComparisonDisplay.from_estimators(
    {"vanilla": vanilla, "CEAT": ceat}, X_test, y_test, attacks=["fgsm", "pgd20", "apgd"], eps=0.1
)
plt.show()
