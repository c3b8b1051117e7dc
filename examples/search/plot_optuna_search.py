"""
A search with Optuna
====================

Optuna proposes parameters, trains for a few epochs at a time and gives up what does not look
promising. Two goals, clean and robust accuracy, give a front instead of a winner.

Needs ``pip install optuna``.
"""

# %%
import matplotlib.pyplot as plt
import optuna
from sklearn.model_selection import train_test_split

from robust_ensembles import AdversarialEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import get_robust_scorer

X, y = load_digits_images()
X_train, X_valid, y_train, y_valid = train_test_split(
    X, y, train_size=800, test_size=300, stratify=y, random_state=0
)
robust = get_robust_scorer("pgd10_linf_0.1")
optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(trial: optuna.Trial) -> AdversarialEnsembleClassifier:
    """An estimator with the parameters that Optuna wants to try."""
    return AdversarialEnsembleClassifier(
        module="mlp",
        module_params={"hidden_sizes": (trial.suggest_categorical("width", [32, 64, 128]),)},
        attack=PGD(eps=trial.suggest_float("eps", 0.02, 0.2), n_steps=4),
        lr=trial.suggest_float("lr", 5e-4, 2e-2, log=True),
        batch_size=64,
        max_epochs=8,
        random_state=0,
    )


# %%
# Giving up early
# ---------------
# ``partial_fit`` trains for one epoch. After each, the robust accuracy so far is reported, and
# Optuna may say that the others were better at this point.
def one_goal(trial: optuna.Trial) -> float:
    clf = propose(trial)
    score = 0.0
    for epoch in range(clf.max_epochs):
        clf.partial_fit(X_train, y_train)
        score = robust(clf, X_valid, y_valid)
        trial.report(score, step=epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return score


study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
)
study.optimize(one_goal, n_trials=8)
pruned = sum(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials)
print(f"{pruned} of {len(study.trials)} trials were given up early")
print(f"best robust accuracy {study.best_value:.3f} with {study.best_params}")


# %%
# Two goals
# ---------
# A larger eps in training buys robust accuracy and costs clean accuracy. The front shows at what
# rate.
def two_goals(trial: optuna.Trial) -> tuple[float, float]:
    clf = propose(trial).fit(X_train, y_train)
    return clf.score(X_valid, y_valid), robust(clf, X_valid, y_valid)


front = optuna.create_study(
    directions=["maximize", "maximize"], sampler=optuna.samplers.TPESampler(seed=1)
)
front.optimize(two_goals, n_trials=10)

figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
values = [trial.values for trial in front.trials]
ax.scatter(*zip(*values, strict=True), color="0.7", label="tried")
best = sorted(trial.values for trial in front.best_trials)
ax.plot(*zip(*best, strict=True), "o-", color="#D55E00", label="front")
ax.set_xlabel("clean accuracy")
ax.set_ylabel("accuracy under PGD-10, eps 0.1")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The images that were searched on have been used up: report the accuracy on others.
