"""Sanity checks: each planted defect fails the checks that it should, a sound model none."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted_models import DIGITS, LABELS, Wrapped, detached, network, noisy, rounded
from sklearn.base import clone
from torch import nn

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import (
    APGD,
    FGSM,
    MORA,
    PGD,
    Attack,
    AutoAttack,
    TargetedAPGD,
    UniformNoise,
)
from robust_ensembles.inspection import Finding, robustness_report
from robust_ensembles.inspection.cells import Limits
from robust_ensembles.inspection.sanity import CHECKS, Evidence, more_steps, order
from robust_ensembles.metrics import robust_mask
from robust_ensembles.modules import Ensemble

EPS = 0.1
X, Y = DIGITS[700:740], LABELS[700:740]
pytestmark = pytest.mark.usefixtures("short_walks")
ATTACKS = {"pgd": PGD(eps=EPS), "apgdt": TargetedAPGD(eps=EPS, n_target_classes=3, n_steps=20)}
CHEAP = {"fgsm": FGSM(eps=EPS)}


def examine(model, attacks=ATTACKS, X=X, **kwargs):
    """Findings on one model by their name."""
    report = robustness_report({"model": model}, X, Y, attacks, **kwargs)
    return {finding.check: finding for finding in report.findings["model"]}


def failed(findings):
    return {check for check, finding in findings.items() if finding.passed is False}


def not_run(findings):
    return {check for check, finding in findings.items() if finding.passed is None}


def only(monkeypatch, *checks):
    """Run these checks alone."""
    chosen = {name: CHECKS[name] for name in checks}
    monkeypatch.setattr("robust_ensembles.inspection.report.CHECKS", chosen)


@pytest.fixture(scope="module")
def other_net():
    return network(seed=1)


@pytest.fixture(scope="module")
def rounded_findings(net, other_net, short_walks):
    return examine(Wrapped(net, rounded), surrogate=other_net)


def test_a_sound_ensemble_fails_none():
    net = {"module": "mlp", "module_params": {"hidden_sizes": (16,)}}
    settings = {**net, "lr": 0.01, "max_epochs": 8}
    make = VanillaEnsembleClassifier(**settings, n_estimators=2, device="cpu")
    ensemble, surrogate = (
        clone(make).set_params(random_state=seed).fit(DIGITS[:600], LABELS[:600]) for seed in (0, 1)
    )
    assert ensemble.score(X, Y) > 0.8
    attacks = {"fgsm": FGSM(eps=EPS), "autoattack": AutoAttack(eps=EPS, n_queries=20)}
    findings = examine(ensemble, attacks, surrogate=surrogate)
    assert list(findings) == list(CHECKS)
    assert failed(findings) == not_run(findings) == set()
    assert {finding.severity for finding in findings.values()} == {"information"}
    assert "AutoAttack" in findings["mora"].message
    assert "not in the report" not in findings["mora"].message


def test_a_sound_module_fails_none(net):
    """A bare one, whose members nobody sees, in training mode to no effect."""
    net.train()
    try:
        findings = examine(net)
    finally:
        net.eval()
    assert failed(findings) == set()
    assert not_run(findings) == {"transfer", "aggregation_swap", "mora"}


def test_rounding(rounded_findings):
    assert failed(rounded_findings) == {"gradients", "huge_eps", "noise", "square", "transfer"}
    assert all(rounded_findings[c].severity == "failure" for c in failed(rounded_findings))
    assert rounded_findings["gradients"].samples == tuple(range(40))
    assert "zero for 40 and NaN or infinite for 0 of 40" in rounded_findings["gradients"].message


def test_offending_samples_are_named(rounded_findings, net):
    """Those that noise breaks, and no gradient attack."""
    attacks = ("fgsm", "pgd", "apgd20", ATTACKS["apgdt"], "noise20")
    report = robustness_report(Wrapped(net, rounded), X, Y, attacks, eps=EPS, sanity_checks=False)
    *gradients, noise = [report.masks["Wrapped"][name] for name in report.attacks]
    alone = np.logical_and.reduce(gradients) & ~noise
    assert rounded_findings["noise"].samples == tuple(np.flatnonzero(alone).tolist())
    assert f"breaks {alone.sum()} of the" in rounded_findings["noise"].message


def test_saturated_logits(net):
    findings = examine(Wrapped(net, factor=100))
    assert failed(findings) == {"saturation"}
    assert findings["saturation"].severity == "warning"
    with torch.no_grad():
        top = 100 * net(torch.tensor(X)).topk(2).values
    expected = np.flatnonzero((top[:, 0] - top[:, 1] > 15).numpy())
    assert findings["saturation"].samples == tuple(expected.tolist())


def test_saturation_blinds_cross_entropy(net, monkeypatch):
    only(monkeypatch, "saturation")
    blind = {"ce": PGD(eps=EPS, n_steps=1, loss="cross_entropy"), "fgsm": FGSM(eps=EPS)}
    finding = examine(Wrapped(net, factor=100), blind)["saturation"]
    assert finding.severity == "failure"
    assert "concerns ce:" in finding.message


def test_input_noise(net):
    findings = examine(Wrapped(net, noisy))
    assert failed(findings) == {"determinism"}
    assert 'AutoAttack(version="rand")' in findings["determinism"].message
    assert {"agreement", "order", "huge_eps", "noise", "square"} <= not_run(findings)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(16), nn.Dropout(0.5)])
def test_left_in_training_mode(layer):
    module = network(hidden=(layer,))
    module[2].train()
    findings = examine(module)
    assert failed(findings) == {"eval_mode"}
    assert "In training mode: 2." in findings["eval_mode"].message
    assert findings["eval_mode"].severity == "failure"
    assert len(findings["eval_mode"].samples) > 30
    assert module[2].training


def test_normalised_outside():
    scaled = ((DIGITS - DIGITS.mean()) / DIGITS.std()).astype(np.float32)
    module = network(X=scaled)
    findings = examine(module, X=scaled[700:740])
    assert failed(findings) == {"raw_units"}
    assert findings["raw_units"].samples == tuple(range(40))


def test_units(net, monkeypatch):
    only(monkeypatch, "raw_units")
    X_out = X.copy()
    X_out[[3, 30]] += 1e-3
    X_out[5, 0, 0, 0] = -1e-8  # rounding
    finding = examine(net, CHEAP, X_out, n_sanity=5)["raw_units"]
    assert finding.samples == (3, 30)
    boxed = {"fgsm": FGSM(eps=EPS, clip_values=(0, 2))}
    assert examine(net, boxed, X_out)["raw_units"].passed
    assert examine(net, CHEAP, (255 * X).astype(np.uint8))["raw_units"].passed
    rows = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), net)
    assert examine(rows, CHEAP, X.reshape(-1, 64) - 5)["raw_units"].passed is None


def test_detached_gradient(net, other_net):
    findings = examine(Wrapped(net, detached), surrogate=other_net)
    assert failed(findings) == {"gradients"}
    comparisons = {"order", "more_steps", "strength", "huge_eps", "noise", "square", "transfer"}
    assert comparisons <= not_run(findings)
    for check in comparisons:
        assert findings[check].severity == "information"
        assert "no gradient" in findings[check].message or check == "strength"


def test_pixels_that_nobody_looks_at_are_no_defect(net, monkeypatch):
    only(monkeypatch, "gradients")
    assert examine(Wrapped(net, lambda x: x.tril()), CHEAP)["gradients"].passed


def test_nan_gradients_are_named(net, monkeypatch):
    """The root's gradient at 0 is infinite, times 0: NaN."""
    only(monkeypatch, "gradients")
    X_odd = 0.5 + X / 2
    X_odd[[2, 35]] = 0.0
    finding = examine(Wrapped(net, lambda x: (x**2).sqrt()), CHEAP, X_odd)["gradients"]
    assert finding.passed is False
    assert finding.samples == (2, 35)
    assert "NaN or infinite for 2 of 40" in finding.message


class Hidden(Ensemble):
    """A member that is so sure that the mean probability hides its gradient."""

    def __init__(self, net, other):
        super().__init__([Wrapped(net, factor=100), other])
        self.eval()


def test_hidden_member(net, other_net):
    """Attacks on the mean probability break the other member, and stand still."""
    findings = examine(Hidden(net, other_net))
    assert failed(findings) == {"saturation", "aggregation_swap", "mora"}
    assert "not in the report" in findings["mora"].message
    assert "mean logits" in findings["aggregation_swap"].message
    assert "EnsembleAutoAttack" in findings["aggregation_swap"].message


def test_what_mora_finds_alone_is_no_failure_if_it_is_reported(net, other_net, monkeypatch):
    only(monkeypatch, "aggregation_swap", "mora")
    reported = examine(Hidden(net, other_net), ATTACKS | {"mora": MORA(eps=EPS, n_steps=20)})
    assert failed(reported) == {"mora"}
    assert reported["mora"].severity == "information"


def test_transfer_between_estimators(net, other_net, monkeypatch):
    only(monkeypatch, "transfer")
    models = {"rounded": Wrapped(net, rounded), "plain": other_net, "same": other_net}
    findings = robustness_report(models, X, Y, ATTACKS).findings
    rounded_one, plain, same = (findings[name][0] for name in models)
    assert rounded_one.passed is False
    assert f"plain {len(rounded_one.samples)}, same" in rounded_one.message
    assert plain.passed
    assert same.passed
    assert "plain was not used: ValueError: the surrogate is the target itself" in same.message
    alone = robustness_report({"plain": other_net, "same": other_net}, X, Y, CHEAP)
    assert alone.findings["same"][0].passed is None


def test_standard_attacks(net):
    """Each sample counts as broken if one of the four breaks it, known before or not."""
    four = [FGSM(eps=EPS), PGD(eps=EPS), APGD(eps=EPS, n_steps=20), ATTACKS["apgdt"]]
    masks = [robust_mask(net, X, Y, attack=attack) for attack in four]
    expected = np.logical_and.reduce(masks)
    assert expected.sum() < np.logical_and.reduce(masks[:3]).sum()
    evidence = Evidence(net, X, Y, limits=Limits(EPS, "linf", None), n_sanity=40, rivals={})
    np.testing.assert_array_equal(evidence.standard, expected)
    some = np.arange(40) % 2 == 0
    for attack, mask in zip(four, masks, strict=True):
        np.testing.assert_array_equal(evidence.robust(attack, among=some), mask & some)
        np.testing.assert_array_equal(evidence.robust(attack), mask)
        np.testing.assert_array_equal(evidence.robust(attack, among=some), mask & some)


def test_strength(net):
    findings = examine(net, {"noise": UniformNoise(eps=EPS, n_draws=1)})
    assert failed(findings) == {"strength"}
    assert findings["strength"].severity == "warning"
    assert len(findings["strength"].samples) > 10


@dataclass(kw_only=True, repr=False, eq=False)
class Overshoot(Attack):
    """Moves two chosen samples further than it says."""

    eps: float = EPS
    norm: str = "linf"
    by: float = 0.01

    def __call__(self, module, X, y, *, stop_when_broken=True):
        made = X.clone()
        made[[-4, -1], 0, 0, 0] += self.eps + self.by
        return made

    def _validate(self):
        pass


def test_ball_and_box(net, monkeypatch):
    only(monkeypatch, "norm_and_box")
    right = np.flatnonzero(net(torch.tensor(X)).argmax(dim=1).numpy() == Y)
    finding = examine(net, {"over": Overshoot(), **CHEAP})["norm_and_box"]
    assert finding.samples == (right[-4], right[-1])
    assert "over: 2 samples, by up to 0.01" in finding.message
    assert examine(net, {"within": Overshoot(by=0.0)})["norm_and_box"].passed
    # pixels of 0, in a box that ends at half of eps
    net.clip_values = (0, 1)
    try:
        X_low = np.minimum(X, 1 - EPS / 2)
        X_low[:, 0, 0, 0] = 1 - EPS / 2
        boxed = examine(net, {"over": Overshoot(by=0.0)}, X_low)["norm_and_box"]
    finally:
        del net.clip_values
    assert len(boxed.samples) == 2
    assert "by up to 0.05" in boxed.message


class Voting(Ensemble):
    """Decides otherwise than by the mean probability."""

    def forward(self, x):
        return -super().forward(x)


class Misquoted(nn.Module):
    """An estimator whose answers are not those of its module."""

    def __init__(self, net):
        super().__init__()
        self.net, self.classes_ = net, np.arange(10)
        self.as_module = lambda: net

    def predict(self, X):
        return 9 - self.net(torch.tensor(X)).argmax(dim=1).numpy()


def test_agreement(net, other_net, monkeypatch):
    only(monkeypatch, "agreement")
    assert examine(Ensemble([net, other_net]).eval(), CHEAP)["agreement"].passed
    voting = examine(Voting([net, other_net]).eval(), CHEAP)["agreement"]
    assert voting.passed is False
    assert len(voting.samples) == 40
    assert examine(Misquoted(net), CHEAP)["agreement"].passed is False


class Drifting(nn.Module):
    """Changes its mind after some calls."""

    def __init__(self, net, n_calls):
        super().__init__()
        self.net, self.left = net, n_calls

    def forward(self, x):
        self.left -= 1
        return self.net(x) if self.left > 0 else self.net(1 - x)


class Learning(nn.Module):
    """Moves its weights whenever it is called."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.shift.data += 1e-9
        return self.net(x)


def test_changed_by_the_evaluation(net, monkeypatch):
    only(monkeypatch, "unchanged")
    assert examine(Drifting(net, 10**9).eval(), CHEAP)["unchanged"].passed
    outputs, weights = (
        examine(model.eval(), CHEAP)["unchanged"] for model in (Drifting(net, 6), Learning(net))
    )
    assert outputs.passed is weights.passed is False
    assert len(outputs.samples) > 30
    assert "Weights, buffers or modes" in weights.message


def masks(*counts, n=100):
    """Masks of samples that withstand: the first so many."""
    return [np.arange(n) < count for count in counts]


@pytest.mark.parametrize(
    ("counts", "samples"),
    [
        ((50, 40, 40, 30), None),
        ((50, 52, 54, 30), None),  # within two samples each
        ((50, 53, 53, 30), (50, 51, 52)),
        ((50, 40, 43, 30), (40, 41, 42)),
        ((50, 40, 40, 41), (40,)),  # a cascade begins with APGD
    ],
)
def test_order(counts, samples):
    fgsm, pgd, apgd, cascade = masks(*counts)
    evidence = SimpleNamespace(
        fgsm=fgsm, pgd=pgd, apgd=apgd, cascades={"autoattack": cascade}, n=100, slack=2
    )
    finding = order(evidence)
    assert finding.passed is (samples is None)
    assert finding.samples == (samples or ())
    assert f"autoattack {counts[3]}.0%" in finding.message


@pytest.mark.parametrize(("few", "many", "passed"), [(40, 42, True), (40, 43, False)])
def test_more_steps(few, many, passed):
    found = {10: few, 50: many}
    evidence = SimpleNamespace(
        robust=lambda attack: masks(found[attack.n_steps])[0], shared={}, n=100, slack=2
    )
    finding = more_steps(evidence)
    assert finding.passed is passed
    assert finding.samples == (() if passed else (40, 41, 42))


def test_an_error_in_a_check_is_a_finding(net, monkeypatch):
    only(monkeypatch, "order", "gradients")
    monkeypatch.setitem(CHECKS, "order", lambda evidence: 1 / 0)
    findings = examine(net, CHEAP)
    assert findings["order"].passed is None
    assert findings["order"].severity == "warning"
    assert "ZeroDivisionError" in findings["order"].message
    assert findings["gradients"].passed


def test_looks_at_the_threat_of_the_attacks(net, monkeypatch):
    only(monkeypatch, "huge_eps")
    attacks = {"l2": FGSM(eps=0.5, norm="l2", clip_values=(0, 1))}
    report = robustness_report(net, X, Y, attacks, eps=0.3, norm="linf", n_sanity=10)
    assert report.settings == {"eps": 0.5, "norm": "l2", "clip_values": [0, 1], "n_sanity": 10}
    message = report.findings["Sequential"][0].message
    assert "eps=8, " in message  # from corner to corner of 64 pixels
    assert robustness_report(net, X, Y, CHEAP).settings["eps"] == EPS


def test_is_on_by_default_and_looks_at_the_first_samples(net):
    report = robustness_report(Wrapped(net, rounded), X, Y, CHEAP, n_sanity=7)
    findings = report.findings["Wrapped"]
    assert [f.check for f in findings] == list(CHECKS)
    assert all(isinstance(f, Finding) for f in findings)
    assert {f.check: f for f in findings}["gradients"].samples == tuple(range(7))
