"""
Attacking a Pipeline on raw data
================================

A scaler in front of the network changes the units. An attacker changes the raw image, so that is
where eps has to be meant. Attacks of this package go through the steps of a Pipeline.
"""

# %%
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD, Square
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.exceptions import NotDifferentiableError
from robust_ensembles.metrics import robust_accuracy_score

X, y = load_digits_images()
rows = X.reshape(len(X), -1)  # scalers take rows
X_train, X_test, y_train, y_test = train_test_split(
    rows, y, test_size=300, stratify=y, random_state=0
)
pipeline = make_pipeline(
    StandardScaler(),
    PCA(32, random_state=0),
    VanillaEnsembleClassifier(
        module="mlp", lr=3e-3, max_epochs=10, batch_size=64, clip_values=None, random_state=0
    ),
).fit(X_train, y_train)

# %%
# The box (0, 1) belongs to raw pixels too, so it is given to the attack. What comes back are raw
# images, within eps and within the box.
attack = PGD(eps=0.1, clip_values=(0, 1))
X_adv = attack.generate(pipeline, X_test, y_test)
print(f"largest change {np.abs(X_adv - X_test).max():.3f}, pixels {X_adv.min()} to {X_adv.max()}")
print(f"accuracy {pipeline.score(X_test, y_test):.3f}, under attack ", end="")
print(f"{robust_accuracy_score(pipeline, X_test, y_test, attack=attack):.3f}")

# %%
# The same eps, on scaled data
# ----------------------------
# Attacking the last step alone is a different question. There, eps is meant in units of principal
# components of standardised pixels; what it is in grey levels differs from direction to direction,
# and the changed samples need not belong to any image.
scaled = pipeline[:-1].transform(X_test)
wrong_units = robust_accuracy_score(pipeline[-1], scaled, y_test, attack=PGD(eps=0.1))
print(f"with eps = 0.1 in units of the principal components: {wrong_units:.3f}")

# %%
sample = int(np.flatnonzero(pipeline.predict(X_adv) != y_test)[0])
figure, axes = plt.subplots(1, 3, figsize=(6, 2.4), layout="constrained")
shown = (X_test[sample], X_adv[sample], X_adv[sample] - X_test[sample])
for ax, image, title in zip(axes, shown, ("raw", "attacked", "difference"), strict=True):
    low, high = (-0.1, 0.1) if title == "difference" else (0, 1)
    cmap = "RdBu" if title == "difference" else "gray_r"
    ax.imshow(image.reshape(8, 8), cmap=cmap, vmin=low, vmax=high)
    ax.set_title(title)
    ax.axis("off")
plt.show()


# %%
# Steps without a derivative
# --------------------------
# A step that no gradient can pass is an error, never a silent zero: an ensemble that sees black and
# white only would else look perfectly robust.
def black_and_white(X: Any) -> Any:
    """1 for dark pixels and 0 for light ones, of arrays and of tensors."""
    return (X > 0.5) * 1.0


two_tone = make_pipeline(FunctionTransformer(black_and_white), clone(pipeline[-1]))
two_tone.fit(X_train, y_train)
print(f"accuracy {two_tone.score(X_test, y_test):.3f}")
try:
    robust_accuracy_score(two_tone, X_test, y_test, attack=attack)
except NotDifferentiableError as error:
    print(textwrap.fill(str(error), 90))

# %%
# Attacks that only look at answers still work.
search = Square(eps=0.1, n_queries=200, clip_values=(0, 1))
print(f"{robust_accuracy_score(two_tone, X_test[:100], y_test[:100], attack=search):.3f}")
