"""
Reading a robustness report
===========================

A high robust accuracy may mean that the model is robust, or that the attack was not up to it. The
report measures, and then tries to refute its own numbers. Here it meets an honest model, and one
whose gradients are hidden.
"""

# %%
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from robust_ensembles import AdversarialEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import robustness_report


class Overconfident(nn.Module):
    """An ordinary network whose logits are multiplied by a thousand at the end."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        n_features = torch.Size(input_shape).numel()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(n_features, 64), nn.ReLU())
        self.classifier = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(x))
        return logits if self.training else 1000 * logits


X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=200, stratify=y, random_state=0)
common: dict[str, Any] = {"lr": 3e-3, "batch_size": 64, "max_epochs": 12, "random_state": 0}
honest = AdversarialEnsembleClassifier(module="mlp", attack=PGD(eps=0.1, n_steps=5), **common).fit(
    X_train, y_train
)
hidden = VanillaEnsembleClassifier(module=Overconfident, **common).fit(X_train, y_train)

# %%
# A weak choice of attacks is enough to fool oneself: PGD on the cross-entropy, which is flat in
# single precision once a model is sure of itself.
attacks = {"pgd20-ce": PGD(eps=0.1, loss="cross_entropy")}
report = robustness_report(
    {"adversarial": honest, "overconfident": hidden},
    X_test[:60],
    y_test[:60],
    attacks,
    eps=0.1,
    n_sanity=20,
)
frame = report.to_frame()
print(frame[["estimator", "attack", "accuracy", "low", "high"]].round(3).to_string(index=False))

# %%
# The findings say whether to believe these numbers. ``failure`` means that they cannot be trusted,
# ``warning`` that somebody should look.
for name, findings in report.findings.items():
    failed = [finding for finding in findings if finding.passed is False]
    print(f"{name}: {len(failed)} of {len(findings)} checks failed")
    for finding in failed:
        text = f"{finding.severity}, {finding.check}: {finding.message}"
        print(textwrap.fill(text, 90, initial_indent="- ", subsequent_indent="  "))

# %%
# The remedy is a better attack. The margin, which is what attacks of this package climb unless they
# are told otherwise, does not round to zero.
again = robustness_report(
    {"overconfident": hidden},
    X_test[:60],
    y_test[:60],
    ("pgd20", "apgd"),
    eps=0.1,
    sanity_checks=False,
)
print(again.to_frame()[["attack", "accuracy"]].round(3).to_string(index=False))

# %%
# Which samples a check objects to is part of the finding, so they can be looked at.
objections = [f for f in report.findings["overconfident"] if f.samples and f.passed is False]
samples = objections[0].samples[:6]
figure, axes = plt.subplots(1, len(samples), figsize=(1.1 * len(samples), 1.5), squeeze=False)
for ax, sample in zip(axes[0], samples, strict=True):
    ax.imshow(X_test[sample, 0], cmap="gray_r")
    ax.set_title(f"image {sample}", fontsize="small")
    ax.axis("off")
figure.suptitle(objections[0].check, fontsize="medium")
figure.tight_layout()
plt.show()
