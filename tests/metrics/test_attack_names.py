"""Attacks and scorers by name."""

import pickle

import pytest
from torch import nn

from robust_ensembles.attacks import (
    APGD,
    BIM,
    CW,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    AutoAttack,
    DeepFool,
    EnsembleAutoAttack,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
)
from robust_ensembles.metrics import (
    attack_from_name,
    get_robust_scorer,
    make_robust_scorer,
    robust_scoring,
)


@pytest.mark.parametrize(
    ("name", "cls", "params"),
    [
        ("fgsm", FGSM, {}),
        ("pgd", PGD, {}),
        ("pgd20", PGD, {"n_steps": 20}),
        ("bim7", BIM, {"n_steps": 7}),
        ("mim10_linf", MIM, {"n_steps": 10, "norm": "linf"}),
        ("pgd20_linf_8_255", PGD, {"n_steps": 20, "norm": "linf", "eps": 8 / 255}),
        ("pgd20_8_255", PGD, {"n_steps": 20, "eps": 8 / 255}),
        ("cw40_l2_0.5", CW, {"n_steps": 40, "norm": "l2", "eps": 0.5}),
        ("fgsm_linf_.1", FGSM, {"norm": "linf", "eps": 0.1}),
        ("fgsm_0.031", FGSM, {"eps": 0.031}),
        ("pgd_l2", PGD, {"norm": "l2"}),
        ("pgd_l2_1", PGD, {"norm": "l2", "eps": 1.0}),
        ("noise5", UniformNoise, {"n_draws": 5}),
        ("apgd50_l2", APGD, {"n_steps": 50, "norm": "l2"}),
        ("apgdt", TargetedAPGD, {}),
        ("fab20", FAB, {"n_steps": 20}),
        ("deepfool", DeepFool, {}),
        ("square500_0.1", Square, {"n_queries": 500, "eps": 0.1}),
        ("mora", MORA, {}),
        ("autoattack_linf_8_255", AutoAttack, {"norm": "linf", "eps": 8 / 255}),
        ("autoattack100", AutoAttack, {"n_queries": 100}),
        ("ensembleautoattack_l2_1", EnsembleAutoAttack, {"norm": "l2", "eps": 1.0}),
    ],
)
def test_names(name, cls, params):
    attack = attack_from_name(name)
    assert type(attack) is cls
    assert attack.get_params() == {**cls().get_params(), **params}


def test_defaults_fill_the_gaps():
    attack = attack_from_name("pgd20_l2", eps=0.3, norm="linf", clip_values=None, n_restarts=2)
    assert (attack.eps, attack.norm, attack.n_restarts) == (0.3, "l2", 2)
    assert attack_from_name("pgd_linf_0.1", eps=0.3).eps == 0.1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("pdg20", "Did you mean 'pgd'"),
        ("fgsn", "Did you mean 'fgsm'"),
        ("pgd20_linff", "Did you mean 'linf'"),
        ("pgd_l1", "norm must be one of"),
        ("fgsm3", "fgsm has no number of steps"),
        ("pgd0", "n_steps must be at least 1"),
        ("pgd_8_0", "names look like"),
        ("PGD20", "names look like"),
        ("pgd 20", "names look like"),
        ("pgd20_linf_-1", "names look like"),
        ("pgd20_", "names look like"),
        ("", "names look like"),
    ],
)
def test_bad_names(name, match):
    for parse in (attack_from_name, get_robust_scorer, robust_scoring):
        with pytest.raises(ValueError, match=match):
            parse(name)


def test_transfer():
    surrogate = nn.Linear(3, 2)
    plain = attack_from_name("transfer", surrogate=surrogate, eps=0.2)
    assert isinstance(plain, Transfer)
    assert (type(plain.attack), plain.attack.eps) == (PGD, 0.2)
    named = attack_from_name("transfer_mim7_linf_0.1", surrogate=[surrogate], eps=0.2)
    assert (type(named.attack), named.attack.n_steps, named.attack.eps) == (MIM, 7, 0.1)
    scoring = robust_scoring("pgd", "transfer", "transfer_bim", eps=0.1, surrogate=surrogate)
    assert list(scoring) == ["clean", "pgd", "transfer", "transfer_bim", "worst"]
    assert scoring["transfer"].attacks[0].surrogate is surrogate


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("transfer_autoattack", "only looks for the first success"),
        ("transfer_pdg", "Did you mean 'pgd'"),
        ("transferpgd", "Did you mean"),
    ],
)
def test_bad_transfers(name, match):
    with pytest.raises(ValueError, match=match):
        robust_scoring(name, surrogate=nn.Linear(3, 2))


def test_transfer_needs_a_surrogate():
    with pytest.raises(ValueError, match=r"'transfer' needs a surrogate.*surrogate="):
        robust_scoring("pgd", "transfer")


def test_scoring_keys():
    pgd = PGD(eps=0.3)
    scoring = robust_scoring("fgsm", "pgd20", pgd, "fgsm", pgd, "pgd20_l2_1", eps=0.1)
    keys = ["clean", "fgsm", "pgd20", "pgd", "fgsm_2", "pgd_2", "pgd20_l2_1", "worst"]
    assert list(scoring) == keys
    eps = {key: [attack.eps for attack in scorer.attacks] for key, scorer in scoring.items()}
    assert eps["clean"] == []
    assert eps["fgsm"] == eps["pgd20"] == eps["fgsm_2"] == [0.1]
    assert eps["pgd"] == [0.3]  # objects keep their own
    assert eps["worst"] == [0.1, 0.1, 0.3, 0.1, 0.3, 1.0]
    assert [scorer.__name__ for scorer in scoring.values()] == keys


def test_scoring_parameters():
    attack = robust_scoring("pgd", eps=2, norm="l2", clip_values=(0, 5))["pgd"].attacks[0]
    assert (attack.eps, attack.norm, attack.clip_values) == (2, "l2", (0, 5))
    assert robust_scoring("pgd")["pgd"].attacks[0].eps == PGD().eps
    with pytest.raises(ValueError, match="needs an attack"):
        robust_scoring()
    with pytest.raises(ValueError, match="eps must be"):
        robust_scoring("pgd", eps=-1)


@pytest.mark.parametrize(
    ("attack", "error", "match"),
    [
        ("pgd", TypeError, "get_robust_scorer"),
        (PGD, TypeError, "must be an attack such as"),
        (PGD(targeted=True), ValueError, "targeted=False"),
        (PGD(eps=-1), ValueError, "eps must be"),
    ],
)
def test_bad_attacks(attack, error, match):
    with pytest.raises(error, match=match):
        make_robust_scorer(attack)
    if attack != "pgd":
        with pytest.raises(error, match=match):
            robust_scoring(attack)


def test_scorers_pickle():
    scoring = pickle.loads(pickle.dumps(robust_scoring("pgd20", eps=0.1)))
    assert repr(scoring["pgd20"]) == repr(robust_scoring("pgd20", eps=0.1)["pgd20"])
    assert scoring["pgd20"]._shared is scoring["worst"]._shared
