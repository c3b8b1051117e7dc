"""Scorers and reports, given anything: an accuracy from 0 to 1, or what is wrong."""

import json

import mutations
import numpy as np
import pytest
import strange
from endings import content, ends_well
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from small import fitted, make, rows

from robust_ensembles.attacks import FGSM, PGD, UniformNoise
from robust_ensembles.inspection import RobustnessReport, robustness_report
from robust_ensembles.metrics import (
    attack_from_name,
    get_robust_scorer,
    make_robust_scorer,
    make_transfer_scorer,
    robust_accuracy_score,
    robust_scoring,
)

ATTACKS = st.one_of(
    st.sampled_from([FGSM(eps=0.1), PGD(eps=0.1, n_steps=2), UniformNoise(n_draws=1)]),
    st.sampled_from([FGSM(eps=-1), FGSM(targeted=True), PGD(norm="l7"), "fgsm", FGSM]),
)
ESTIMATORS = st.one_of(
    st.sampled_from(["rows", "images", "strings", "steep"]).map(fitted),
    st.sampled_from([make(), LogisticRegression(), None, "rows", 1, [], object, np.zeros(3)]),
)


@st.composite
def scored(draw):
    estimator = draw(st.one_of(st.just(fitted()), ESTIMATORS))
    X = draw(strange.inputs(strange.IMAGES if estimator is fitted("images") else strange.ROWS))
    n = strange.size_of(X)
    y = draw(st.one_of(st.just(np.arange(n) % 3), strange.labels(n)))
    return {"estimator": estimator, "X": X, "y": y, "sample_weight": draw(strange.weights(n))}


def test_scores(explore):
    def check(data, attack, way, conditional):
        before = content(data["X"]), content(data["y"])
        if way == "function":
            call, options = robust_accuracy_score, {"attack": attack, "conditional": conditional}
        else:
            made = ends_well(make_robust_scorer, attack, conditional=conditional)
            if way == "transfer":
                made = ends_well(make_transfer_scorer, fitted("other"), attack)
            if not made:
                return
            call, options = made.value, {}
        ended = ends_well(call, **data, **options)
        assert (content(data["X"]), content(data["y"])) == before
        if ended:
            assert isinstance(ended.value, float)
            assert 0 <= ended.value <= 1 + 1e-9

    explore(
        check,
        data=scored(),
        attack=ATTACKS,
        way=st.sampled_from(["function", "scorer", "transfer"]),
        conditional=st.booleans(),
    )


_PARTS = st.sampled_from(
    [
        *("fgsm", "pgd", "apgd", "autoattack", "noise", "transfer", "clean", "_", "20", "0", "-1"),
        *("l2", "linf", "l1", "8", "255", "0.5", "1e9", "9" * 5000, ".", " ", "\0", "PGD", "é"),
    ]
)
NAMES = st.one_of(st.lists(_PARTS, max_size=5).map("".join), st.text(max_size=12), strange.NONSENSE)


def test_scoring_names(explore):
    def check(names, options):
        scoring = ends_well(robust_scoring, *names, **options)
        if scoring:
            assert {"clean", "worst"} < set(scoring.value)
        for name in names:
            ends_well(get_robust_scorer, name)
            ended = ends_well(attack_from_name, name)
            if ended:
                ended.value._validate()

    options = st.fixed_dictionaries(
        {}, optional={"eps": strange.NONSENSE, "norm": NAMES, "clip_values": strange.NONSENSE}
    )
    explore(check, names=st.lists(NAMES, max_size=3), options=options)


def test_report_requests(explore):
    def check(data, attacks, options):
        del data["sample_weight"]
        estimators = data.pop("estimator")
        ended = ends_well(
            robustness_report, estimators, **data, attacks=attacks, sanity_checks=False, **options
        )
        if not ended:
            return
        report = ended.value
        frame = report.to_frame()
        assert frame["accuracy"].dropna().between(0, 1).all()
        assert RobustnessReport.from_json(report.to_json()) == report
        assert report.to_markdown()

    named = st.dictionaries(NAMES.filter(lambda n: isinstance(n, str)), ATTACKS, max_size=2)
    options = st.fixed_dictionaries(
        {},
        optional={
            "eps": st.one_of(st.just(0.1), strange.NONSENSE),
            "norm": st.one_of(st.just("l2"), strange.NONSENSE),
            "clip_values": strange.NONSENSE,
            "n_sanity": strange.NONSENSE,
        },
    )
    attacks = st.one_of(ATTACKS, st.lists(ATTACKS, max_size=2), named, strange.NONSENSE)
    explore(check, data=scored(), attacks=attacks, options=options)


@pytest.fixture(scope="module")
def good_report():
    X, y = rows()
    return robustness_report(fitted(), X, y, FGSM(eps=0.1), n_sanity=4)


def test_reports_as_json(explore, good_report, tmp_path):
    plain = json.loads(good_report.to_json())
    text = good_report.to_json().encode()
    path = tmp_path / "report.json"
    X, y = rows()

    def check(alter, change, again):
        raw = mutations.as_json(alter(plain)).encode() if change is None else change(text)
        path.write_bytes(raw)
        ended = ends_well(RobustnessReport.from_json, path, files=True)
        if ended:
            ends_well(_look, ended.value)
        if again:  # a report on the same data that goes on
            ended = ends_well(
                robustness_report, fitted(), X, y, FGSM(eps=0.1), sanity_checks=False, path=path
            )
            if ended:
                assert ended.value.masks.keys() == good_report.masks.keys()
                ends_well(_look, ended.value)

    explore(
        check,
        alter=mutations.value_changes(),
        change=st.one_of(st.none(), mutations.byte_changes()),
        again=st.booleans(),
    )


def _look(report):
    report.to_frame()
    report.to_markdown()
    return report.to_json()
