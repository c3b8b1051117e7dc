"""The robustness report: its numbers, how it is written, and how it goes on."""

import copy
import json
import os
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from planted_models import DIGITS, LABELS, Wrapped, detached, network
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochTimer

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import (
    FGSM,
    PGD,
    AutoAttack,
    External,
    Square,
    Transfer,
    UniformNoise,
    WorstCase,
)
from robust_ensembles.inspection import RobustnessReport, robustness_report
from robust_ensembles.inspection.cells import describe, digest_of_model
from robust_ensembles.metrics import robust_accuracy_score, robust_mask

EPS = 0.08
X, Y = DIGITS[700:760], LABELS[700:760]


@dataclass(kw_only=True, repr=False, eq=False)
class CountedPGD(PGD):
    """Counts its calls, in the class: its parameters stay the same."""

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


@pytest.fixture(autouse=True)
def _count_from_zero():
    CountedPGD.calls = 0


def counted(**params):
    return CountedPGD(**{"eps": EPS, "n_steps": 2, **params})


@pytest.fixture(scope="module")
def ensemble():
    net = {"module": "mlp", "module_params": {"hidden_sizes": (16,)}}
    settings = {**net, "max_epochs": 5, "lr": 0.01}
    estimator = VanillaEnsembleClassifier(**settings, n_estimators=2, device="cpu", random_state=7)
    return estimator.fit(DIGITS[:300], LABELS[:300])


def report_of(estimators, *args, **kwargs):
    return robustness_report(estimators, X, Y, *args, **{"sanity_checks": False, **kwargs})


def accuracies(report):
    frame = report.to_frame()
    return {(row.estimator, row.attack): row.accuracy for row in frame.itertuples()}


def test_numbers_are_those_of_the_metrics(ensemble, net):
    noise = [UniformNoise(eps=0.5, n_draws=1, random_state=seed) for seed in (0, 1)]
    attacks = {"l2": FGSM(eps=0.1, norm="l2"), "n0": noise[0], "n1": noise[1], "sq": "square20"}
    report = report_of({"ensemble": ensemble, "net": net}, attacks, eps=EPS / 4)
    objects = {**attacks, "sq": Square(eps=EPS / 4, n_queries=20)}
    found = accuracies(report)
    for name, model in (("ensemble", ensemble), ("net", net)):
        for attack, made in objects.items():
            assert found[name, attack] == robust_accuracy_score(model, X, Y, attack=made)
            mask = robust_mask(model, X, Y, attack=made)
            np.testing.assert_array_equal(report.masks[name][attack], mask)
        worst = robust_accuracy_score(model, X, Y, attack=WorstCase(list(objects.values())))
        assert found[name, "worst"] == worst < min(found[name, a] for a in objects)
    assert found["ensemble", "clean"] == ensemble.score(X, Y)


def test_frame(net):
    frame = report_of({"a": net, "b": net}, ("fgsm", "pgd2"), eps=EPS).to_frame()
    assert frame["estimator"].tolist() == ["a"] * 4 + ["b"] * 4
    assert frame["attack"].tolist() == ["clean", "fgsm", "pgd2", "worst"] * 2
    clean, worst = frame.iloc[0], frame.iloc[3]
    assert worst["n_samples"] == 60
    assert worst["accuracy"] == worst["n_robust"] / 60
    assert worst["conditional_accuracy"] == worst["n_robust"] / clean["n_robust"]
    assert clean["conditional_accuracy"] == 1
    assert 0 < worst["conditional_accuracy"] < 1
    assert worst["seconds"] == frame["seconds"][1] + frame["seconds"][2] > 0
    assert (frame["device"] == "cpu").all()
    assert frame["error"].isna().all()


def test_interval_is_clopper_pearson(net):
    """For no success of n the upper end p solves (1 - p)^n = 0.025."""
    report = robustness_report(net, X[:20], Y[:20], "fgsm", eps=1.0, sanity_checks=False)
    worst = report.to_frame().iloc[-1]
    assert worst["accuracy"] == worst["low"] == 0
    assert worst["high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert f"0.0 [0.0, {100 * worst['high']:.1f}]" in report.to_markdown()


def test_names_of_attacks(net):
    attacks = (FGSM(eps=EPS), "fgsm", FGSM(eps=EPS / 2), "pgd1_l2_0.5")
    report = report_of(net, attacks, eps=EPS, norm="linf", clip_values=(0, 1))
    assert list(report.attacks) == ["fgsm", "fgsm_2", "fgsm_3", "pgd1_l2_0.5"]
    assert [a["params"]["eps"] for a in report.attacks.values()] == [EPS, EPS, EPS / 2, 0.5]
    clips = [a["params"]["clip_values"] for a in report.attacks.values()]
    assert clips == [None, [0, 1], None, [0, 1]]
    assert list(report.estimators) == ["Sequential"]
    assert list(report_of(net, FGSM(eps=EPS)).attacks) == ["fgsm"]


def test_states_what_was_run(ensemble):
    report = report_of(ensemble, ("pgd2",), eps=EPS)
    assert report.estimators["VanillaEnsembleClassifier"]["random_state"] == 7
    params = report.attacks["pgd2"]["params"]
    assert (params["random_state"], params["n_steps"]) == (0, 2)
    assert report.versions["torch"] == torch.__version__
    assert {"robust_ensembles", "python", "scikit-learn", "skorch", "numpy"} <= set(report.versions)


def test_pipeline_data_frame_and_string_labels(ensemble):
    rows = pd.DataFrame(DIGITS.reshape(-1, 64)).add_prefix("pixel")
    names = np.array([f"digit {i}" for i in range(10)])
    pipeline = make_pipeline(StandardScaler(), copy.deepcopy(ensemble))
    pipeline.fit(rows[:300], names[LABELS[:300]])
    report = robustness_report(pipeline, rows[700:760], names[Y], "pgd2", eps=EPS, n_sanity=10)
    expected = robust_accuracy_score(
        pipeline, rows[700:760], names[Y], attack=PGD(eps=EPS, n_steps=2)
    )
    assert accuracies(report)["Pipeline", "pgd2"] == expected
    assert report.estimators["Pipeline"]["random_state"] == 7
    assert all(f.severity != "failure" for f in report.findings["Pipeline"])
    assert RobustnessReport.from_json(report.to_json()) == report


def test_round_trip(net, tmp_path):
    shifted = External(function=lambda module, x, y: x + 0.01, eps=1.0)
    attacks = {"noise": "noise3", "cut": FGSM(eps=EPS), "any": shifted}
    models = {"net": net, "cut": Wrapped(net, detached)}
    report = report_of(models, attacks, eps=EPS, sanity_checks=True, n_sanity=4)
    text = report.to_json(tmp_path / "report.json")
    path = tmp_path / "report.json"
    for again in map(RobustnessReport.from_json, (text, path, str(path))):
        assert again == report
        assert again.to_json() == text
        pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
        assert again.to_markdown() == report.to_markdown()
        assert again.findings == report.findings
        np.testing.assert_array_equal(again.masks["net"]["worst"], report.masks["net"]["worst"])
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity, which are no JSON
    other = RobustnessReport.from_json(text)
    other.cells.pop()
    assert other != report
    assert report != "report"


@pytest.mark.parametrize("text", ["{}", "{", '{"kind": "other"}'])
def test_from_json_refuses_other_texts(text, tmp_path):
    with pytest.raises(ValueError, match=r"JSON|no robustness report"):
        RobustnessReport.from_json(text)
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        RobustnessReport.from_json(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"other\.json"):
        report_of(network(), ("fgsm",), path=tmp_path / "other.json")


def test_a_gradient_attack_without_gradients_has_no_number(net):
    report = report_of(Wrapped(net, detached), ("fgsm", "square20"), eps=EPS)
    masks, errors = report.masks["Wrapped"], report.errors["Wrapped"]
    assert list(masks) == ["clean", "square20", "worst"]
    np.testing.assert_array_equal(masks["worst"], masks["square20"])
    assert "NotDifferentiableError" in errors["fgsm"]
    frame = report.to_frame().set_index("attack")
    assert np.isnan(frame.loc["fgsm", "accuracy"])
    assert frame.loc["worst", "error"] == "without fgsm"
    text = report.to_markdown()
    assert re.search(r"\| Wrapped \| 60 \| [\d.]+ \| failed \| [\d.]+ \|", text)
    assert "(of 1 of 2 attacks)" in text
    assert "`fgsm`: failed: NotDifferentiableError: " in text
    nothing = report_of(Wrapped(net, detached), ("fgsm",), eps=EPS)
    assert nothing.to_frame()["attack"].tolist() == ["clean", "fgsm"]
    assert "| failed | none | none |" in nothing.to_markdown()


def test_markdown(net, short_walks):
    report = report_of({"plain": net}, ("fgsm", "pgd2"), eps=EPS, sanity_checks=True, n_sanity=5)
    text = report.to_markdown()
    assert "| estimator | n | clean | fgsm | pgd2 | worst | conditional |" in text
    masks = report.masks["plain"]
    numbers = [f"{100 * masks[a].mean():.1f}" for a in ("clean", "fgsm", "pgd2", "worst")]
    conditional = f"{100 * masks['worst'].sum() / masks['clean'].sum():.1f}"
    assert re.search(
        rf"\| plain \| 60 \| {' . '.join(numbers)} \[\d+\.\d, \d+\.\d\] \| {conditional} \|", text
    )
    assert "upper bound" in text
    assert "percent" in text
    for finding in report.findings["plain"]:
        assert finding.check in text
        assert finding.message in text
    assert "pgd2`: PGD(" in text
    assert "random_state=0" in text
    assert f"torch {torch.__version__}" in text
    assert report._repr_markdown_() == text
    order = [text.index(part) for part in ("| plain |", "## Sanity checks", "## Settings")]
    assert order == sorted(order)


def test_markdown_names_failures_first_and_samples(net):
    X_out = X.copy()
    X_out[:12] += 3
    report = robustness_report(net, X_out, Y, ("noise1",), eps=EPS, n_sanity=2)
    text = report.to_markdown()
    assert "**failure: raw_units.**" in text
    assert "Samples: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more." in text
    assert text.index("failure: raw_units") < text.index("passed: eval_mode")
    assert "None were run" in report_of(net, ("fgsm",)).to_markdown()


# going on


def test_resume_measures_nothing_twice(net, tmp_path):
    path = tmp_path / "report.json"
    attacks = {"two": counted(), "one": counted(n_steps=1)}
    first = report_of(net, attacks, path=path)
    assert CountedPGD.calls == 2
    assert RobustnessReport.from_json(path) == first
    assert report_of(copy.deepcopy(net), attacks, path=path) == first
    assert CountedPGD.calls == 2
    renamed = report_of({"other name": net}, {"first": counted(n_steps=1)}, path=path)
    assert CountedPGD.calls == 2
    np.testing.assert_array_equal(
        renamed.masks["other name"]["first"], first.masks["Sequential"]["one"]
    )
    # what the call in between did not ask for has been carried along
    assert report_of(net, attacks, path=path) == first
    assert CountedPGD.calls == 2
    assert os.listdir(tmp_path) == ["report.json"]


def test_resume_measures_what_has_changed(net, tmp_path):
    path = tmp_path / "report.json"
    changing = copy.deepcopy(net)

    def calls(attack):
        before = CountedPGD.calls
        report = report_of(changing, {"pgd": attack}, path=path)
        fresh = report_of(changing, {"pgd": attack})
        np.testing.assert_array_equal(
            report.masks["Sequential"]["pgd"], fresh.masks["Sequential"]["pgd"]
        )
        return CountedPGD.calls - before - 1

    assert calls(counted()) == 1
    assert calls(counted()) == 0
    assert calls(counted(eps=EPS / 2)) == 1
    assert calls(counted(random_state=1)) == 1
    with torch.no_grad():
        changing[1].bias += 0.1
    assert calls(counted()) == 1
    assert calls(counted()) == 0


@pytest.mark.parametrize("which", ["X", "y"])
def test_other_data_are_refused(which, net, tmp_path):
    path = tmp_path / "report.json"
    report_of(net, {"pgd": counted()}, path=path)
    before = path.read_bytes()
    data = {"X": X.copy(), "y": Y.copy()}
    data[which][3] = data[which][4] if which == "X" else (Y[3] + 1) % 10
    with pytest.raises(ValueError, match=rf"other data: {which} differ"):
        robustness_report(net, attacks={"pgd": counted()}, path=path, **data)
    with pytest.raises(ValueError, match="it has 60 samples, given are 59"):
        robustness_report(net, X[1:], Y[1:], {"pgd": counted()}, path=path)
    assert CountedPGD.calls == 1
    assert path.read_bytes() == before


def test_failed_cells_are_tried_again(net, tmp_path):
    path = tmp_path / "report.json"
    calls = []

    def fragile(module, x, y):
        calls.append(len(x))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return x

    attacks = {"fragile": External(function=fragile, eps=EPS)}
    assert "out of memory" in report_of(net, attacks, path=path).errors["Sequential"]["fragile"]
    assert report_of(net, attacks, path=path).errors["Sequential"] == {}
    assert len(calls) == 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(step, net, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    first = report_of(net, ("noise1",), path=path)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        report_of(net, ("fgsm",), path=path)
    assert RobustnessReport.from_json(path) == first
    assert os.listdir(tmp_path) == ["report.json"]


def test_digests_compare_content(ensemble, net):
    assert digest_of_model(copy.deepcopy(ensemble)) == digest_of_model(ensemble)
    assert digest_of_model(network(seed=1)) != digest_of_model(net)
    assert digest_of_model(Wrapped(net)) != digest_of_model(net)
    smooth = torch.nn.Sequential(*net[:2], torch.nn.Tanh(), net[3])  # with the same weights
    assert digest_of_model(smooth) != digest_of_model(net)
    half = copy.deepcopy(net).to(torch.bfloat16)
    assert digest_of_model(half) == digest_of_model(copy.deepcopy(half)) != digest_of_model(net)
    # objects whose text tells where they are in memory
    one, other = (
        copy.deepcopy(ensemble).set_params(callbacks=[("timer", EpochTimer())]) for _ in range(2)
    )
    assert digest_of_model(one) == digest_of_model(other)
    fewer = copy.deepcopy(ensemble)
    fewer.classes_ = fewer.classes_[::-1]
    assert digest_of_model(fewer) != digest_of_model(ensemble)


def test_description_of_attacks(net):
    worst = describe(WorstCase([FGSM(eps=np.float32(0.5)), UniformNoise(n_draws=np.int64(3))]))
    assert worst["type"] == "WorstCase"
    fgsm, noise = worst["params"]["attacks"]
    assert fgsm["params"]["eps"] == 0.5
    assert noise["params"]["n_draws"] == 3
    one, other = (describe(Transfer(network(seed=s), PGD(eps=EPS))) for s in (0, 1))
    assert one == describe(Transfer(copy.deepcopy(net), PGD(eps=EPS)))
    assert one != other
    json.dumps([worst, one])


# the rest


@pytest.mark.slow
def test_a_sound_ensemble_passes_all_checks(ensemble, net):
    """At the full length of their attacks; see test_sanity."""
    attacks = {"fgsm": FGSM(eps=EPS), "autoattack": AutoAttack(eps=EPS, n_queries=20)}
    report = report_of(ensemble, attacks, sanity_checks=True, surrogate=net)
    assert all(finding.passed for finding in report.findings[type(ensemble).__name__])


def test_folder_must_exist(net, tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"):
        report_of(net, {"pgd": counted()}, path=tmp_path / "nowhere" / "report.json")
    assert CountedPGD.calls == 0


def test_leaves_no_trace(net):
    module = copy.deepcopy(net).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    noise = Wrapped(module, lambda x: x + 0.01 * torch.randn_like(x))
    noise.train()
    report_of(noise, ("fgsm",), eps=EPS, sanity_checks=True, n_sanity=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in noise.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_progress(net, capsys):
    report_of(net, ("fgsm", "pgd2"), eps=EPS)
    assert capsys.readouterr() == ("", "")
    report_of(net, ("fgsm", "pgd2"), eps=EPS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Sequential: pgd2" in err
    assert "0:00:00 left" in err


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "no estimator", {"estimators": [1, 2]}),
        (ValueError, "estimators is empty", {"estimators": {}}),
        (NotFittedError, "not fitted", {"estimators": VanillaEnsembleClassifier()}),
        (ValueError, "attacks is empty", {"attacks": ()}),
        (ValueError, "Did you mean 'pgd'", {"attacks": "pgdd20"}),
        (TypeError, "must be an attack", {"attacks": {"a": 3}}),
        (TypeError, "must be an attack", {"attacks": [3]}),
        (ValueError, "must not be named 'worst'", {"attacks": {"worst": "fgsm"}}),
        (ValueError, "targeted", {"attacks": {"a": PGD(targeted=True)}}),
        (ValueError, "eps must be", {"eps": -1}),
        (ValueError, "norm", {"norm": "l3"}),
        (ValueError, "clip_values", {"clip_values": (1, 0)}),
        (ValueError, r"spans \[0, 1\] as Sequential takes it", {"clip_values": (0, 0.5)}),
        (ValueError, "inconsistent", {"y": Y[:5]}),
        (ValueError, "no sample", {"X": X[:0], "y": Y[:0]}),
        (ValueError, "NaN", {"X": np.full_like(X, np.nan)}),
        (ValueError, "n_sanity", {"n_sanity": 0}),
    ],
)
def test_bad_input(error, match, change, net, tmp_path):
    given = {"estimators": net, "X": X, "y": Y, "attacks": ("fgsm",), "path": tmp_path / "r.json"}
    with pytest.raises(error, match=match):
        robustness_report(**{**given, **change})
    assert not os.listdir(tmp_path)


def test_transfer_by_name_uses_the_surrogate(ensemble, net):
    """Of two names that are alike but for the surrogate, the number is that of the metric."""
    report = report_of(ensemble, ("fgsm", "transfer_fgsm"), eps=EPS, surrogate=net)
    expected = robust_accuracy_score(ensemble, X, Y, attack=Transfer(net, FGSM(eps=EPS)))
    name = type(ensemble).__name__
    assert accuracies(report)[name, "transfer_fgsm"] == expected
    with pytest.raises(ValueError, match="needs a surrogate"):
        report_of(ensemble, "transfer", eps=EPS)
