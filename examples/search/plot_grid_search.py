"""
Grid search on robust accuracy
==============================

The training attack and a weight of the loss are chosen by cross-validation, by the accuracy under
the worst of two attacks. The estimator stands at the end of a Pipeline.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from robust_ensembles import CEATEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_scoring

X, y = load_digits_images()
X = X.reshape(len(X), -1)  # scalers take rows
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=800, test_size=300, stratify=y, random_state=0
)

# %%
# The attacks of the scorers act on raw pixels and pass through the scaler, so their eps keeps its
# meaning whatever the scaler does. The attack that CEAT *trains* with works behind the scaler, in
# scaled units: its eps is another number, and one of those searched for.
ceat = CEATEnsembleClassifier(
    module="mlp",
    module_params={"hidden_sizes": (64,)},
    attack=PGD(n_steps=4),
    lr=3e-3,
    batch_size=64,
    max_epochs=8,
    random_state=0,
)
search = GridSearchCV(
    make_pipeline(MaxAbsScaler(), ceat),
    {
        "ceatensembleclassifier__mu": [1.0, 5.0],
        "ceatensembleclassifier__attack__eps": [0.05, 0.1, 0.15],
    },
    scoring=robust_scoring("fgsm", "pgd10", eps=0.1, clip_values=(0, 1)),
    refit="worst",
    cv=StratifiedKFold(2, shuffle=True, random_state=0),
    error_score="raise",
)
search.fit(X_train, y_train)
print(search.best_params_)

# %%
# ``robust_scoring`` gives a dict of scorers: clean accuracy, each attack, and ``worst``, the images
# that withstand all of them. An attack runs once, however many scorers look at its result.
# ``error_score="raise"`` lets an estimator that cannot be attacked stop the search; by default,
# scikit-learn would note NaN and choose among the rest.
columns = [name for name in search.cv_results_ if name.startswith("mean_test")]
for params, *values in zip(
    search.cv_results_["params"], *(search.cv_results_[c] for c in columns), strict=True
):
    mu, eps = params.values()
    print(f"{mu} {eps}: " + ", ".join(f"{100 * value:.1f}" for value in values))

# %%
# Clean accuracy and the worst attack often want different parameters.
epsilons = np.array(
    [params["ceatensembleclassifier__attack__eps"] for params in search.cv_results_["params"]]
)
weights = np.array(
    [params["ceatensembleclassifier__mu"] for params in search.cv_results_["params"]]
)
figure, ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
for mu, color in ((1.0, "#0072B2"), (5.0, "#D55E00")):
    for name, style in (("clean", "--"), ("worst", "-")):
        values = 100 * search.cv_results_[f"mean_test_{name}"][weights == mu]
        ax.plot(epsilons[weights == mu], values, style, color=color, label=f"{name}, mu = {mu:g}")
ax.set_xlabel("eps of the training attack, in scaled units")
ax.set_ylabel("mean accuracy over the folds (%)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, ncols=2)
plt.show()

# %%
# The best by the worst attack was fitted again on all training data. What counts is its accuracy on
# images that took no part in the search.
for name, scorer in search.scorer_.items():
    print(f"{name}: {scorer(search.best_estimator_, X_test, y_test):.3f}")
