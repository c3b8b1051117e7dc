"""
Watching a training with TensorBoard and MLflow
===============================================

An ensemble takes callbacks of skorch. Two of them write what happens to TensorBoard and to MLflow;
a third scores robust accuracy after each epoch.

Needs ``pip install tensorboard mlflow-skinny sqlalchemy alembic``.
"""

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from mlflow.tracking import MlflowClient
from sklearn.model_selection import train_test_split
from skorch.callbacks import EarlyStopping, EpochScoring, MlflowLogger, TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from robust_ensembles import AdversarialEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import get_robust_scorer

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)
folder = Path(tempfile.mkdtemp())

# %%
# TensorBoard gets a writer. MLflow gets a client and a run; here both are local files, and the
# networks are not uploaded at the end (``create_artifact=False``), since
# :meth:`~robust_ensembles.VanillaEnsembleClassifier.save` writes them in one file.
writer = SummaryWriter(folder / "tensorboard")
client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
run = client.create_run(client.create_experiment("digits", artifact_location=folder.as_uri()))

# %%
# A robust scorer in ``EpochScoring`` attacks the part that is held back, after each epoch.
robust = EpochScoring(
    get_robust_scorer("pgd10_linf_0.1"),
    name="valid_pgd10",
    lower_is_better=False,
)
clf = AdversarialEnsembleClassifier(
    module="mlp",
    attack=PGD(eps=0.1, n_steps=4),
    lr=3e-3,
    batch_size=64,
    max_epochs=12,
    train_split=0.2,  # EpochScoring and EarlyStopping look at this part
    callbacks=[
        robust,
        TensorBoard(writer),
        MlflowLogger(run, client, create_artifact=False),
        EarlyStopping(monitor="valid_pgd10", lower_is_better=False, patience=5),
    ],
    random_state=0,
)
clf.fit(X_train, y_train)
print(f"{clf.n_iter_} epochs, test accuracy {clf.score(X_test, y_test):.3f}")

# %%
# What TensorBoard would show, read back from its file (``tensorboard --logdir ...`` draws it in the
# browser):
events = EventAccumulator(str(folder / "tensorboard"))
events.Reload()
tags = events.Tags()["scalars"]
print(tags)

# %%
# And from MLflow:
history = client.get_metric_history(run.info.run_id, "valid_pgd10")
figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ax.plot([m.step for m in history], [m.value for m in history], "o-", label="under PGD-10")
ax.plot(clf.history_[:, "epoch"], clf.history_[:, "valid_acc"], "s--", label="clean")
ax.set_xlabel("epoch")
ax.set_ylabel("accuracy on the part held back")
ax.legend(frameon=False)
plt.show()
