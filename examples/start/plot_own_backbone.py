"""
A network of torchvision
========================

Any network that maps a batch of images to logits can be a member. Here it is a residual network of
torchvision, cut down for images of 8 x 8 pixels and trained by NCEn.
"""

# %%
# A factory is a function that returns a new network. It is called once for each member, so that no
# two share weights, and gets ``n_classes`` and ``in_channels`` if it names them. A factory of
# torchvision can be given as it is: ``module=torchvision.models.resnet18`` is told the number of
# classes. Ours also changes the first layer, which was made for photographs of 224 x 224 pixels.
import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from robust_ensembles import NCEnEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_scoring
from robust_ensembles.modules import Normalize


def small_resnet(in_channels: int, n_classes: int) -> nn.Module:
    """The first two stages of torchvision's ResNet, of one block each."""
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.layer3 = network.layer4 = nn.Identity()
    network.fc = nn.Linear(128, n_classes)
    return nn.Sequential(Normalize(mean=0.3, std=0.38), network)


# %%
# Normalisation belongs into the network, as here, and not before the estimator: attacks then work
# on pixels in [0, 1], and eps is meant in these.
X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=500, test_size=100, stratify=y, random_state=0
)
ncen = NCEnEnsembleClassifier(
    module=small_resnet, lr=2e-3, batch_size=50, max_epochs=4, random_state=0
).fit(X_train, y_train)

# %%
# Every term of the loss has a column of its own in the history.
epochs = ncen.history_[:, "epoch"]
figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
for name in ("train_loss", "train_cross_entropy", "train_direction", "train_magnitude"):
    ax.plot(epochs, ncen.history_[:, name], marker="o", label=name)
ax.set_xlabel("epoch")
ax.set_xticks(epochs)
ax.legend(frameon=False)
plt.show()

# %%
# Attacks know the network by its gradients alone: nothing has to be registered.
for name, scorer in robust_scoring("fgsm", PGD(eps=0.05, n_steps=10), eps=0.05).items():
    print(f"{name}: {scorer(ncen, X_test, y_test):.3f}")
