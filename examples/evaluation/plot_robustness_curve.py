"""
Accuracy against the size of the perturbation
=============================================

One eps is one point. The whole curve shows where a defence begins to pay, what it costs without an
attack, and whether accuracy goes to zero when everything is allowed, as it must.
"""

# %%
from typing import Any

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CLDLEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD, Attack, Square, WorstCase
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import RobustnessCurveDisplay

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=200, stratify=y, random_state=0)
common: dict[str, Any] = {
    "module": "mlp",
    "lr": 3e-3,
    "batch_size": 64,
    "max_epochs": 15,
    "random_state": 0,
}
ensembles = {
    "vanilla": VanillaEnsembleClassifier(**common),
    "CLDL": CLDLEnsembleClassifier(**common),
    "adversarial": AdversarialEnsembleClassifier(attack=PGD(eps=0.1, n_steps=5), **common),
}
for clf in ensembles.values():
    clf.fit(X_train, y_train)

# %%
# The attack is given once; its eps is set for each point. A sample that a small perturbation breaks
# counts as broken by all larger ones, which include it.
grid = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
display = RobustnessCurveDisplay.from_estimators(
    ensembles, X_test, y_test, attack=PGD(n_steps=20), eps=grid
)
display.ax_.axvline(0.1, color="0.8", linewidth=1, zorder=0)
plt.show()


# %%
# The vertical line is the eps of the adversarial training. What withstands half of the pixel range,
# where any digit can be turned into a grey area, would be a sign that the attack has failed.
#
# An attack without gradients beside
# ----------------------------------
# A function of eps makes what has no eps of its own, such as the worst of several attacks.
def gradients_and_search(eps: float) -> Attack:
    return WorstCase([PGD(eps=eps, n_steps=20), Square(eps=eps, n_queries=150)])


both = RobustnessCurveDisplay.from_estimator(
    ensembles["CLDL"],
    X_test[:100],
    y_test[:100],
    attack=gradients_and_search,
    eps=[0.05, 0.1, 0.2],
    name="CLDL",
)
alone = RobustnessCurveDisplay.from_estimator(
    ensembles["CLDL"], X_test[:100], y_test[:100], attack=PGD(), eps=[0.05, 0.1, 0.2], name="CLDL"
)
for eps, worst, pgd in zip(both.eps, both.accuracy[0], alone.accuracy[0], strict=True):
    print(f"eps {eps:.2f}: PGD leaves {100 * pgd:.0f}%, PGD and Square {100 * worst:.0f}%")
plt.close("all")
