"""One object makes the ensemble's answer of its members' outputs, and all who need one ask it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import APGD, FAB, PGD, CarliniWagnerL2, Square, as_torch, is_broken
from robust_ensembles.inspection import robustness_report
from robust_ensembles.inspection.displays.decision_region import decide
from robust_ensembles.losses import ensemble_log_proba
from robust_ensembles.modules.combiners import MeanProbability, combiner_of


class FirstMember:
    """A rule that differs from the mean probability: who is first decides."""

    def log_proba(self, member_logits):
        return member_logits[0].log_softmax(dim=-1)

    def predicted_log_proba(self, member_log_proba):
        return member_log_proba[0]


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    X = np.eye(3, 6)[y] + 0.7 * random.normal(size=(120, 6))
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def fitted(data):
    return VanillaEnsembleClassifier(n_estimators=2, max_epochs=2, random_state=0).fit(*data)


@pytest.fixture(scope="module")
def ruled(fitted):
    """The same members under another rule."""
    other = copy.deepcopy(fitted)
    other.net_.module_.combiner = FirstMember()
    return other


def test_the_mean_probability_in_torch_and_in_numpy():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    rule = MeanProbability()
    assert torch.equal(rule.log_proba(logits), ensemble_log_proba(logits))
    predicted = rule.predicted_log_proba(logits.log_softmax(dim=-1).numpy())
    np.testing.assert_allclose(predicted, rule.log_proba(logits).numpy(), rtol=1e-12)


def test_a_module_without_a_combiner_has_the_mean_probability(fitted):
    assert isinstance(combiner_of(torch.nn.Linear(2, 2)), MeanProbability)
    ensemble = pickle.loads(pickle.dumps(fitted.net_.module_))
    assert isinstance(combiner_of(ensemble), MeanProbability)
    assert "combiner" not in vars(ensemble)
    assert not any("combiner" in key for key in ensemble.state_dict())


class TestAnotherRule:
    def test_predictions(self, ruled, fitted, data):
        X, _ = data
        first = fitted.member_predict_proba(X)[0]
        np.testing.assert_allclose(ruled.predict_proba(X), first)
        np.testing.assert_array_equal(ruled.predict(X), first.argmax(axis=1))
        assert (ruled.predict(X) != fitted.predict(X)).any()
        forward = ruled.as_module()(torch.from_numpy(X)).exp().detach().numpy()
        np.testing.assert_allclose(forward, first, atol=1e-6)

    @pytest.mark.parametrize(
        "attack",
        [
            PGD(eps=0.5, n_steps=5),
            APGD(eps=0.5, n_steps=5),
            FAB(eps=0.5, n_steps=3),
            CarliniWagnerL2(eps=1.0, n_steps=5, n_searches=2, lr=0.1),
            Square(eps=0.5, n_queries=10),
        ],
        ids=lambda attack: type(attack).__name__,
    )
    def test_attacks_climb_it_and_are_judged_by_it(self, ruled, fitted, data, attack):
        """As if the first member were alone."""
        x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
        module, alone = ruled.as_module(), fitted.estimators_[0]
        assert torch.equal(is_broken(module, x, y), is_broken(alone, x, y))
        found, expected = attack(module, x, y), attack(alone, x, y)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.equal(found, attack(fitted.as_module(), x, y))

    def test_through_a_pipeline(self, data):
        pipeline = make_pipeline(StandardScaler(), VanillaEnsembleClassifier(max_epochs=1))
        module = as_torch(pipeline.fit(*data))
        assert isinstance(combiner_of(module), MeanProbability)
        rule = FirstMember()
        pipeline[-1].net_.module_.combiner = rule
        assert combiner_of(as_torch(pipeline)) is rule

    def test_displays_and_sanity_checks(self, ruled, data):
        X, y = data
        np.testing.assert_array_equal(
            decide(ruled.as_module(), torch.from_numpy(X)), ruled.predict(X)
        )
        report = robustness_report(ruled, X[:30], y[:30], PGD(eps=0.2), n_sanity=30)
        [findings] = report.findings.values()
        verdicts = {finding.check: finding.passed for finding in findings}
        assert verdicts["agreement"]
