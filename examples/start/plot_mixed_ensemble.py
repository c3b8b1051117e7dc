"""
A mixed ensemble
================

Members need not be of one kind. Here a multilayer perceptron, a convolutional network and a network
written in this file form one ensemble, trained by ADP.
"""

# %%
# ``module`` takes a list with one entry for each member: names of the package's networks, classes
# or functions that build a network. ``module_params`` may be a list as well. The members only have
# to agree on what goes in and on the number of classes.
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from robust_ensembles import ADPEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import TransferabilityDisplay
from robust_ensembles.metrics import robust_accuracy_score


class WideConvolution(nn.Module):
    """One layer of large filters, then the mean over the image."""

    def __init__(self, in_channels: int, n_classes: int, width: int = 32) -> None:
        super().__init__()
        self.filters = nn.Conv2d(in_channels, width, kernel_size=5, padding=2)
        self.classifier = nn.Linear(width * 16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.functional.adaptive_avg_pool2d(self.filters(x).relu(), 4)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)

# %%
# A constructor is given those of ``in_channels``, ``input_shape`` and ``n_classes`` that it names.
modules: list[Any] = ["mlp", "lenet5", WideConvolution]
adp = ADPEnsembleClassifier(
    module=modules,
    module_params=[{"hidden_sizes": (64,)}, None, {"width": 24}],
    lr=3e-3,
    batch_size=64,
    max_epochs=12,
    random_state=0,
).fit(X_train, y_train)
for member in adp.estimators_:
    size = sum(parameter.numel() for parameter in member.parameters())
    print(f"{type(member).__name__}: {size} weights")

# %%
# How good is each member, and how good are they together? ``member_predict_proba`` has the answers
# of each; the ensemble answers by their mean.
members = adp.member_predict_proba(X_test).argmax(axis=2)
for member, answers in zip(adp.estimators_, members, strict=True):
    print(f"{type(member).__name__}: {np.mean(adp.classes_[answers] == y_test):.3f}")
print(f"together: {adp.score(X_test, y_test):.3f}, ", end="")
print(f"under PGD: {robust_accuracy_score(adp, X_test, y_test, attack=PGD(eps=0.1)):.3f}")

# %%
# Do examples made for one member fool another? Networks of different kinds share fewer weaknesses.
TransferabilityDisplay.from_estimator(adp, X_test, y_test, attack=PGD(eps=0.1))
plt.show()
