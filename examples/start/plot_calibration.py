"""
Collaborative calibration as a plug-in
======================================

CEAT adds two terms to adversarial training: a member is pulled towards the label, and its
adversarial answer towards its clean one, the more strongly the less its peers agree on the sample.
The same two terms can be added to any other method that trains on adversarial examples.
"""

# %%
# ``attack=`` adds adversarial training to a method, ``calibration=`` adds the two terms to that.
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import train_test_split

from robust_ensembles import CollaborativeCalibration, GALEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.losses import disparity_weights
from robust_ensembles.metrics import robust_scoring

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=1000, test_size=300, stratify=y, random_state=0
)
gal = GALEnsembleClassifier(
    module="mlp",
    module_params={"activation": "leaky_relu"},
    attack=PGD(eps=0.1, n_steps=5),
    lr=3e-3,
    batch_size=64,
    max_epochs=10,
    random_state=0,
)
calibrated = GALEnsembleClassifier(**gal.get_params(deep=False)).set_params(
    calibration=CollaborativeCalibration(lam=1.0, mu=5.0)
)
gal.fit(X_train, y_train)
calibrated.fit(X_train, y_train)

# %%
# The terms are columns of the history, beside those of the host.
for name, value in calibrated.history_[-1].items():
    if name.startswith("train_") and isinstance(value, float):
        print(f"{name}: {value:.3f}")

# %%
# The weight of a sample
# ----------------------
# With three members, the weight of a sample in the training of one of them is the exponential of
# how far the two others are apart in the probability of the true class. Most samples weigh about
# one; those that the others disagree about weigh more.
true_class = np.searchsorted(calibrated.classes_, y_test)
proba = calibrated.member_predict_proba(X_test)
h = torch.as_tensor(proba[:, np.arange(len(y_test)), true_class])
weights = disparity_weights(h, tau=5.0)

figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ax.hist(weights.flatten().log10().numpy(), bins=40, color="#0072B2")
ax.set_yscale("log")
ax.set_xlabel("logarithm (base 10) of a sample's weight, exponent 5")
ax.set_ylabel("samples, over all members")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What it changes here, with one seed and 300 images: look at differences of a few points as noise.
scoring = robust_scoring("fgsm", "pgd20", "mora", eps=0.1)
for label, clf in (("GAL", gal), ("GAL with calibration", calibrated)):
    values = {name: f"{scorer(clf, X_test, y_test):.3f}" for name, scorer in scoring.items()}
    print(label, values)
