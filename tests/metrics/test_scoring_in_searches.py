"""Scorers in cross-validation, searches and Pipelines."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.fixes import parse_version

from robust_ensembles import CEATEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import FGSM, PGD, as_torch
from robust_ensembles.metrics import make_robust_scorer, robust_accuracy_score, robust_scoring

EPS = 0.08


def make(cls=VanillaEnsembleClassifier, **params):
    settings = {
        "module_params": {"hidden_sizes": (16,)},
        "max_epochs": 3,
        "batch_size": 32,
        "lr": 0.01,
        "device": "cpu",
        "random_state": 0,
    }
    return cls(**{**settings, **params})


def scaled(*steps, **params):
    return make_pipeline(*steps, make(max_epochs=10, **params))


def double(X):
    return 2 * X


def halve(X):
    return X / 2


def test_cross_validate(digit_rows):
    X, _, y, _ = digit_rows
    result = cross_validate(
        make(), X, y, cv=2, scoring=robust_scoring("fgsm", "pgd5", eps=EPS), error_score="raise"
    )
    scores = {key: result[f"test_{key}"] for key in ("clean", "fgsm", "pgd5", "worst")}
    np.testing.assert_array_equal(
        scores["clean"], cross_val_score(make(), X, y, cv=2, scoring="accuracy")
    )
    for key in ("fgsm", "pgd5"):
        assert (scores["worst"] <= scores[key]).all()
        assert (scores[key] < scores["clean"]).all()


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grid_search_through_a_pipeline(digit_rows, n_jobs):
    """Over mu and the training attack; several processes find what one does."""
    X, y = digit_rows[0][:100], digit_rows[2][:100]
    attack = PGD(eps=0.05, n_steps=1)
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("ceat", make(CEATEnsembleClassifier, attack=attack))]
    )
    grid = {"ceat__mu": [0.0, 5.0], "ceat__attack__eps": [0.02, 0.3]}
    searches = [
        GridSearchCV(
            pipeline,
            grid,
            cv=2,
            scoring=robust_scoring("fgsm", "pgd3", eps=EPS),
            refit="worst",
            n_jobs=n_jobs,
            error_score="raise",
        ).fit(X, y)
        for n_jobs in (1, n_jobs)
    ]
    one, two = (search.cv_results_ for search in searches)
    columns = [name for name in one if "test" in name]
    assert len(columns) == 4 * 5  # two splits, mean, std and rank of each scorer
    for name in columns:
        np.testing.assert_array_equal(one[name], two[name])
    worst = one["mean_test_worst"]
    assert len(set(worst)) > 2
    assert searches[0].best_score_ == worst.max()
    assert searches[0].best_params_ == searches[1].best_params_
    assert attack.eps == 0.05
    scorer = make_robust_scorer(FGSM(eps=EPS))
    assert scorer(searches[0], X, y) == scorer(searches[1].best_estimator_, X, y)


def test_epsilon_is_in_raw_units(digit_rows):
    """Not in those of the scaled X, where the same number is a much weaker attack."""
    X, X_test, y, y_test = digit_rows
    scale = 10 * StandardScaler().fit(X).scale_.max()
    pipeline = scaled(StandardScaler()).fit(X * scale, y)
    raw, attack = X_test * scale, PGD(eps=EPS * scale, n_steps=5)
    found = robust_accuracy_score(pipeline, raw, y_test, attack=attack)

    module = torch.nn.Sequential(as_torch(pipeline[0]), pipeline[1].as_module())
    x, labels = torch.from_numpy(raw).double(), torch.from_numpy(y_test)
    adversarial = attack(module, x, labels)
    assert (adversarial - x).abs().max() <= EPS * scale + 1e-9
    correct = (pipeline.predict(raw) == y_test) & (pipeline.predict(adversarial.numpy()) == y_test)
    assert found == correct.mean()
    scaled_only = robust_accuracy_score(
        pipeline[1], pipeline[0].transform(raw), y_test, attack=PGD(eps=EPS, n_steps=5)
    )
    assert found < scaled_only - 0.1


def test_pipeline_that_changes_without_training_is_not_stale(digit_rows):
    """A FunctionTransformer learns nothing: set_params takes effect at once."""
    X, X_test, y, y_test = digit_rows
    pipeline = scaled(FunctionTransformer(double), PCA(20)).fit(X, y)
    scorer = robust_scoring(FGSM(eps=EPS))["worst"]
    before = scorer(pipeline, X_test, y_test)
    pipeline.set_params(functiontransformer__func=halve)
    after = scorer(pipeline, X_test, y_test)
    assert after == robust_accuracy_score(pipeline, X_test, y_test, attack=FGSM(eps=EPS))
    assert after != before


BEFORE_1_7 = parse_version(sklearn.__version__) < parse_version("1.7")


@pytest.mark.parametrize(
    "routing",
    [
        pytest.param(
            False, marks=pytest.mark.skipif(BEFORE_1_7, reason="scorers got no weights before 1.7")
        ),
        True,
    ],
)
def test_sample_weight_in_a_search(digit_rows, routing):
    X, _, y, _ = digit_rows
    weight = (np.arange(200) % 4).astype(float)
    with config_context(enable_metadata_routing=routing):
        scoring = robust_scoring("fgsm", eps=EPS)
        estimator = make()
        if routing:
            for scorer in scoring.values():
                assert scorer.set_score_request(sample_weight=True) is scorer
            estimator.set_fit_request(sample_weight=True)
        search = GridSearchCV(
            estimator, {"lr": [0.01]}, cv=2, scoring=scoring, refit="worst", error_score="raise"
        ).fit(X, y, sample_weight=weight)
        plain = make().fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(plain.predict(X), search.predict(X))
    found = search.cv_results_["split1_test_fgsm"][0]
    _, (train, test) = StratifiedKFold(2).split(X, y)
    fold = make().fit(X[train], y[train], sample_weight=weight[train])
    expected, unweighted = (
        robust_accuracy_score(fold, X[test], y[test], attack=FGSM(eps=EPS), sample_weight=w)
        for w in (weight[test], None)
    )
    assert found == pytest.approx(expected)
    assert found != pytest.approx(unweighted)


def test_weights_that_nobody_asked_for(digit_rows):
    X, _, y, _ = digit_rows
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            make().set_fit_request(sample_weight=True),
            {"lr": [0.01]},
            cv=2,
            scoring=robust_scoring("fgsm"),
            refit="worst",
        )
        with pytest.raises(ValueError, match="sample_weight"):
            search.fit(X, y, sample_weight=np.ones(200))


def test_autoattack_and_transfer_in_a_search(digit_rows):
    X, y = (part[digit_rows[2] < 3] for part in (digit_rows[0], digit_rows[2]))
    surrogate = make(random_state=9, max_epochs=10).fit(X, y)
    scoring = robust_scoring("pgd5", "autoattack20", "transfer", eps=0.15, surrogate=surrogate)
    search = GridSearchCV(
        make(max_epochs=10),
        {"lr": [0.01]},
        scoring=scoring,
        refit="worst",
        cv=2,
        error_score="raise",
    )
    results = search.fit(X, y).cv_results_
    of = {key: results[f"mean_test_{key}"][0] for key in scoring}
    assert 0 < of["worst"] <= of["autoattack20"] <= of["pgd5"] < of["clean"]
    assert of["worst"] <= of["transfer"] <= of["clean"]
