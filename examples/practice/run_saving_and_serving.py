"""
Saving an ensemble and serving it with ONNX
===========================================

A trained ensemble becomes one file that can be read anywhere without running code from it, and an
ONNX model that needs neither this package nor PyTorch.

Needs ``pip install onnx onnxscript onnxruntime``.
"""

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.model_selection import train_test_split

from robust_ensembles import AdversarialEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.persistence import load

X, y = load_digits_images()
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=300, stratify=y, random_state=0)
clf = AdversarialEnsembleClassifier(
    module="mlp", attack=PGD(eps=0.1, n_steps=4), lr=3e-3, max_epochs=8, random_state=0
).fit(X_train, y_train)

# %%
# One file
# --------
# It holds the weights as safetensors and everything else as JSON. The predictions after loading are
# the same to the bit on a processor, and the estimator can be attacked as before.
folder = Path(tempfile.mkdtemp())
clf.save(folder / "digits.safetensors")
again = load(folder / "digits.safetensors")
print(f"{(folder / 'digits.safetensors').stat().st_size / 1024:.0f} KiB")
print(bool((again.predict_proba(X_test) == clf.predict_proba(X_test)).all()))
attack = PGD(eps=0.1)
print(f"under PGD: {robust_accuracy_score(again, X_test, y_test, attack=attack):.3f}")

# %%
# A damaged file is refused, whatever is wrong with it.
content = (folder / "digits.safetensors").read_bytes()
(folder / "torn.safetensors").write_bytes(content[: len(content) // 2])
try:
    load(folder / "torn.safetensors")
except ModelFileError as error:
    print(str(error).replace(str(folder), "..."))

# %%
# ONNX
# ----
# The model takes images as they are, for any number of samples, and returns the logarithms of the
# mean probabilities. Before it is kept, its answers are compared with those of the estimator.
# ``input_dtype="uint8"`` would make it take raw bytes.
clf.export_onnx(folder / "digits.onnx")
session = onnxruntime.InferenceSession(folder / "digits.onnx")
(log_proba,) = session.run(None, {"X": X_test})
difference = np.abs(log_proba - clf.predict_log_proba(X_test)).max()
print(f"largest difference of a log-probability: {difference:.1e}")

# %%
# Labels need not be 0, 1, 2...: the model's metadata has them in the order of its columns.
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
answers = np.array(classes)[log_proba.argmax(axis=1)]
print(f"accuracy of the ONNX model: {np.mean(answers == y_test):.3f}")

figure, axes = plt.subplots(1, 8, figsize=(8, 1.5), layout="constrained")
for ax, image, answer, row in zip(axes, X_test, answers, log_proba, strict=False):
    ax.imshow(image[0], cmap="gray_r")
    ax.set_title(f"{answer}, {np.exp(row.max()):.2f}", fontsize="small")
    ax.axis("off")
plt.show()
