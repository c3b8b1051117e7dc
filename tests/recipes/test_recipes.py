"""Recipes: what is published, that the table shows it, and that it trains."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import robust_ensembles
from robust_ensembles import VanillaEnsembleClassifier, recipes
from robust_ensembles.attacks import PGD
from robust_ensembles.training import GaussianNoise, RandomCrop

TABLE = recipes.list()
TRIPLES = [tuple(t) for t in TABLE[["method", "dataset", "source"]].drop_duplicates().to_numpy()]
PAIRS = list(dict.fromkeys(t[:2] for t in TRIPLES))
IMAGES = {
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
}
CIFAR_SCALE = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
ADAM = {"weight_decay": 1e-4, "eps": 1e-7}
SGD = {"momentum": 0.9, "weight_decay": 1e-4}
FLIP = "[RandomHorizontalFlip()]"
CROP_FLIP = "[RandomCrop(), RandomHorizontalFlip()]"
CROP_FLIP_NOISE = "[RandomCrop(), RandomHorizontalFlip(), GaussianNoise()]"


def value_of(estimator, name):
    component, separator, key = name.partition("__")
    if separator and component in ("module", "optimizer"):
        return getattr(estimator, f"{component}_params")[key]
    value = estimator.get_params()[name]
    return "vanilla" if isinstance(value, VanillaEnsembleClassifier) else value


def settings(estimator):
    """All parameters, comparable: transforms and attacks by what they print."""
    params = estimator.get_params(deep=False)
    return {
        name: repr(v) if name in ("augmentation", "attack", "pretrained") else v
        for name, v in params.items()
    }


# --- the table -----------------------------------------------------------------------------


def test_the_table_has_its_columns_and_tags():
    assert isinstance(TABLE, pd.DataFrame)
    assert TABLE.columns.tolist() == [
        "method",
        "dataset",
        "source",
        "parameter",
        "value",
        "tag",
    ]
    assert set(TABLE.tag) == {"P", "C", "M", "I"}
    assert not TABLE.duplicated(["method", "dataset", "source", "parameter"]).any()
    assert set(TABLE.source) == set(recipes.SOURCES)
    assert set(TABLE.dataset) == set(recipes.DATASETS)


def test_every_estimator_of_the_package_has_a_recipe():
    public = {n for n in robust_ensembles.__all__ if n.endswith("EnsembleClassifier")}
    assert {cls.__name__ for cls in recipes.METHODS.values()} == public
    assert set(TABLE.method) == set(recipes.METHODS)


def test_what_there_is():
    found = {}
    for method, dataset, source in TRIPLES:
        found.setdefault(method, {}).setdefault(dataset, []).append(source)
    short = {"mnist": "M", "fashion-mnist": "F", "cifar10": "10", "cifar100": "100"}
    lines = {
        method: "; ".join(f"{short[d]} {' '.join(s)}" for d, s in datasets.items())
        for method, datasets in found.items()
    }
    assert (
        lines.items()
        >= {
            "vanilla": "M cldl; F cldl ncen; 10 dverge cldl ncen; 100 lafed",
            "adversarial": "M cldl; F cldl; 10 dverge cldl ceat; 100 lafed",
            "adp": "M adp cldl; F cldl; 10 adp dverge cldl ceat; 100 adp ceat",
            "gal": "M cldl; F cldl ncen; 10 dverge cldl ncen ceat; 100 ceat",
            "gpmr": "F ncen; 10 ncen; 100 ncen",
            "dverge": "M trs cldl; F cldl; 10 dverge cldl ceat; 100 lafed ceat",
            "trs": "M trs cldl; F cldl; 10 trs cldl ceat; 100 ceat",
            "cldl": "M cldl; F cldl; 10 cldl; 100 cldl",
            "ncen": "F ncen; 10 ncen; 100 ncen",
            "lafed": "10 lafed ceat; 100 lafed ceat",
            "fasten": "10 fasten ceat; 100 fasten ceat",
            "ceat": "10 ceat; 100 ceat",
        }.items()
    )


@pytest.mark.parametrize(("method", "dataset", "source"), TRIPLES)
def test_table_and_estimator_agree(method, dataset, source):
    estimator = recipes.get(method, dataset, source=source)
    rows = TABLE[
        (TABLE.method == method) & (TABLE.dataset == dataset) & (TABLE.source == source)
    ].set_index("parameter")
    for name, value in rows.value.items():
        assert repr(value_of(estimator, name)) == repr(value), name
    # and the estimator has nothing else that is not its default
    plain = {name for name in rows.index if "__" not in name}
    components = {name.partition("__")[0] for name in rows.index if "__" in name}
    expected = plain | {"attack" if c == "attack" else f"{c}_params" for c in components}
    default = settings(type(estimator)())
    changed = {name for name, v in settings(estimator).items() if v != default[name]}
    assert changed <= expected
    for c in {"module", "optimizer"} & components:
        inside = {n.partition("__")[2] for n in rows.index if n.startswith(f"{c}__")}
        assert set(getattr(estimator, f"{c}_params")) == inside


def test_which_recipes_train_on_attacks():
    attacked = TABLE[TABLE.parameter == "attack__eps"]
    found = set(zip(attacked.method, attacked.dataset, attacked.source, strict=True))
    assert found == {t for t in TRIPLES if t[0] == "adversarial" or t[2] == "ceat"}


def tag(method, dataset, source, parameter):
    by = TABLE.set_index(["method", "dataset", "source", "parameter"]).tag
    return by[method, dataset, source, parameter]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("adversarial mnist cldl attack__eps", "M"),
        ("adversarial mnist cldl lr", "C"),
        ("adversarial fashion-mnist cldl attack__n_steps", "I"),
        ("adversarial cifar10 dverge attack__eps", "C"),
        ("adversarial cifar10 ceat attack__eps", "I"),
        ("adp cifar100 adp alpha", "C"),
        ("gpmr cifar10 ncen lambda_div", "P"),
        ("gpmr cifar100 ncen lambda_div", "I"),
        ("gal cifar100 ceat augmentation", "I"),
        ("trs cifar10 ceat coeff", "C"),
        ("trs cifar100 ceat coeff", "I"),
        ("cldl mnist cldl gamma", "P"),
        ("cldl cifar10 cldl augmentation", "C"),
        ("cldl cifar10 cldl max_epochs", "P"),
        ("cldl cifar100 cldl gamma", "I"),
        ("cldl cifar100 cldl max_epochs", "I"),
        ("ncen fashion-mnist ncen lambda_cos", "P"),
        ("ncen cifar100 ncen lambda_norm", "I"),
        ("lafed cifar10 lafed smoothing", "C"),
        ("lafed cifar100 lafed smoothing", "I"),
        ("fasten cifar100 ceat beta", "I"),
        ("ceat cifar100 ceat mu", "P"),
        ("ceat cifar10 ceat lr", "P"),
        ("ceat cifar10 ceat batch_size", "I"),
        ("ceat cifar10 ceat optimizer__momentum", "P"),
        ("ceat cifar10 ceat optimizer__weight_decay", "I"),
    ],
)
def test_tags(row, expected):
    assert tag(*row.split()) == expected


def test_what_the_tables_and_estimators_hold_is_their_own():
    changed = recipes.list()
    changed.loc[changed.parameter == "augmentation", "value"].iloc[0].append("mine")
    clf = recipes.get("cldl", "cifar10")
    clf.augmentation[0].padding = 1
    clf.augmentation.append("mine")
    clf.lr_milestones.append(1)
    clf.module_params["activation"] = "relu"
    clf.optimizer_params["eps"] = 1.0
    at = recipes.get("adversarial", "cifar10")
    at.set_params(attack__eps=0.5)
    assert settings(recipes.get("cldl", "cifar10")) == settings(
        recipes.get("CLDL", "CIFAR-10", source="CLDL")
    )
    assert recipes.get("cldl", "cifar10").augmentation[0].padding == 4
    assert recipes.get("adversarial", "cifar10").attack.eps == 8 / 255
    pd.testing.assert_frame_equal(recipes.list().astype(str), TABLE.astype(str))


# --- values by hand, from the papers' tables -----------------------------------------------


LENET_MNIST = {"embedding_size": 64, "normalize": (0.1307, 0.3081)}
LENET_FASHION = {"embedding_size": 64, "normalize": (0.2854, 0.3527)}
RESNET_CLDL = {"embedding_size": 64, "normalize": CIFAR_SCALE}
LEAKY_CLDL = {**RESNET_CLDL, "activation": "leaky_relu"}
LEAKY = {"activation": "leaky_relu"}
NET = {"normalize": CIFAR_SCALE}

# network, its arguments, optimizer, its arguments, lr, epochs, milestones, batch, augmentation
TRAINING = {
    ("cldl", "mnist", None): (
        "lenet5", LENET_MNIST, "adam", ADAM, 1e-3, 20, None, 128, FLIP),
    ("cldl", "fashion-mnist", None): (
        "lenet5", LENET_FASHION, "adam", ADAM, 1e-3, 30, [10, 20], 128, FLIP),
    ("cldl", "cifar10", None): (
        "resnet20", LEAKY_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP_NOISE),
    ("cldl", "cifar100", None): (
        "resnet20", LEAKY_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP_NOISE),
    ("vanilla", "mnist", None): (
        "lenet5", LENET_MNIST, "adam", ADAM, 1e-3, 20, None, 128, FLIP),
    ("vanilla", "cifar10", "cldl"): (
        "resnet20", RESNET_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP),
    ("vanilla", "cifar10", None): (
        "resnet20", NET, "sgd", SGD, 0.1, 200, [100, 150], 128, CROP_FLIP),
    ("vanilla", "cifar100", None): (
        "resnet20", NET, "sgd", SGD, 0.1, 200, [100, 150], 128, CROP_FLIP),
    ("adversarial", "cifar10", "cldl"): (
        "resnet20", RESNET_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP),
    ("ncen", "fashion-mnist", None): (
        "resnet20", LEAKY, "adam", None, 1e-3, 40, [15, 30], 64,
        "[RandomCrop(), NoisyCopies(sigma=0.15)]"),
    ("ncen", "cifar10", None): (
        "resnet20", LEAKY, "adam", None, 1e-3, 60, [15, 30, 45], 64,
        "[RandomHorizontalFlip(), RandomCrop(), NoisyCopies(sigma=0.045)]"),
    ("gpmr", "fashion-mnist", None): (
        "resnet20", LEAKY, "adam", None, 1e-3, 40, [15, 30], 64,
        "[RandomCrop(), NoisyCopies(sigma=0.15)]"),
    ("vanilla", "cifar10", "ncen"): (
        "resnet20", LEAKY, "adam", None, 1e-3, 60, [15, 30, 45], 64,
        "[RandomHorizontalFlip(), RandomCrop(), NoisyCopies(sigma=0.045)]"),
    ("ceat", "cifar10", None): (
        "resnet20", None, "sgd", SGD, 0.01, 120, [75, 95], 128, CROP_FLIP),
    ("ceat", "cifar100", None): (
        "resnet20", None, "sgd", SGD, 0.01, 120, [75, 95], 128, CROP_FLIP),
    ("fasten", "cifar100", "ceat"): (
        "resnet20", None, "sgd", SGD, 0.01, 120, [75, 95], 128, CROP_FLIP),
    ("adp", "cifar100", "ceat"): (
        "resnet20", None, "adam", {"weight_decay": 1e-4}, 1e-3, 150, [90, 120], 128, CROP_FLIP),
    ("gal", "cifar100", None): (
        "resnet20", LEAKY, "adam", {"weight_decay": 1e-4}, 1e-3, 150, [90, 120], 128,
        CROP_FLIP_NOISE),
    ("gal", "cifar10", None): (
        "resnet20", {**NET, **LEAKY}, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP_NOISE),
    ("gal", "cifar10", "cldl"): (
        "resnet20", LEAKY_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP_NOISE),
    ("gal", "fashion-mnist", None): (
        "lenet5", LENET_FASHION, "adam", ADAM, 1e-3, 30, [10, 20], 128, FLIP),
    ("dverge", "cifar10", None): (
        "resnet20", NET, "sgd", SGD, 0.1, 200, [100, 150], 128, CROP_FLIP),
    ("dverge", "cifar10", "cldl"): (
        "resnet20", RESNET_CLDL, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP),
    ("dverge", "mnist", None): (
        "lenet5", {"normalize": (0.5, 0.5)}, "sgd", SGD, 1e-3, 120, [40, 80], 128, FLIP),
    ("adp", "cifar10", "dverge"): (
        "resnet20", NET, "adam", ADAM, 1e-3, 200, [100, 150], 128, CROP_FLIP),
    ("adp", "mnist", None): (
        "resnet20", None, "adam", {"weight_decay": 1e-4}, 1e-3, 40, [15, 30], 64,
        "[RandomCrop(padding=3), RandomHorizontalFlip()]"),
    ("adp", "cifar10", None): (
        "resnet20", None, "adam", {"weight_decay": 1e-4}, 1e-3, 200, [100, 150], 64,
        "[RandomCrop(padding=3), RandomHorizontalFlip()]"),
    ("trs", "mnist", None): (
        "lenet5", {"normalize": (0.5, 0.5)}, "adam", ADAM, 1e-3, 120, [40, 80], 128, FLIP),
    ("trs", "cifar10", None): (
        "resnet20", NET, "adam", ADAM, 1e-3, 120, [40, 80], 128, CROP_FLIP),
    ("lafed", "cifar10", None): (
        "resnet20", NET, "sgd", SGD, 0.1, 200, [100, 150], 128, CROP_FLIP),
    ("fasten", "cifar10", None): (
        "resnet20", NET, "sgd", SGD, 0.1, 200, [100, 150], 128, CROP_FLIP),
}  # fmt: skip


@pytest.mark.parametrize("key", TRAINING, ids=lambda key: "-".join(map(str, key)))
def test_training_settings(key):
    method, dataset, source = key
    clf = recipes.get(method, dataset, source=source)
    found = (
        clf.module, clf.module_params, clf.optimizer, clf.optimizer_params, clf.lr,
        clf.max_epochs, clf.lr_milestones, clf.batch_size, repr(clf.augmentation),
    )  # fmt: skip
    assert found == TRAINING[key]
    assert clf.n_estimators == 3
    assert getattr(clf, "formulation", "paper") == "paper"


AT_CIFAR = {"attack__eps": 8 / 255, "attack__step_size": 2 / 255, "attack__n_steps": 10}
NO_ATTACK = {"attack": None, "calibration": None}
DISTIL = {"eps": 0.07, "step_size": 0.007, "n_steps": 10}
DISTIL_CLDL = {"eps": 8 / 255, "step_size": 2 / 255, "n_steps": 10, "pretrained": None}
MEMBER = {**AT_CIFAR, "attack_target": "member"}
TRS_MNIST = {"scale": 5, "coeff": 2, "lamda": 2, "delta_init": 0.1, "delta_final": 0.2}
TRS_CIFAR = {"scale": 1, "coeff": 20, "lamda": 2.5, "delta_init": 0.01, "delta_final": 0.03}
TRS_CLDL = {"scale": 5, "coeff": 2, "lamda": 2, "inner_max": False}
FASTEN = {"eps": 0.06, "step_size": 0.06, "n_steps": 1, "beta": 3, "eps_init": 8 / 255}
METHOD = [
    (
        "adversarial mnist",
        {"attack__eps": 0.3, "attack__step_size": 0.01, "attack__n_steps": 40},
    ),
    (
        "adversarial fashion-mnist",
        {"attack__eps": 0.1, "attack__step_size": 0.01, "attack__n_steps": 20},
    ),
    ("adversarial cifar10", {**AT_CIFAR, "attack_target": "ensemble"}),
    ("adversarial cifar10 ceat", {**AT_CIFAR, "attack_target": "ensemble"}),
    ("adversarial cifar100", AT_CIFAR),
    ("adp mnist", {"alpha": 2, "beta": 0.5, **NO_ATTACK}),
    ("adp cifar100", {"alpha": 2, "beta": 0.5, **NO_ATTACK}),
    ("adp cifar10 ceat", {**AT_CIFAR, "attack_target": "ensemble", "alpha": 2, "beta": 0.5}),
    ("gal mnist", {"lam": 0.5, **NO_ATTACK}),
    ("gal cifar10 ncen", {"lam": 0.5, **NO_ATTACK}),
    ("gpmr fashion-mnist", {"lambda_div": 0.1, "lambda_eq": 10, **NO_ATTACK}),
    ("gpmr cifar10", {"lambda_div": 0.04, "lambda_eq": 10}),
    ("gpmr cifar100", {"lambda_div": 0.04, "lambda_eq": 10}),
    (
        "dverge mnist",
        {"eps": 0.35, "step_size": 0.035, "n_steps": 10, "pretrained": None},
    ),
    ("dverge mnist cldl", DISTIL_CLDL),
    ("dverge fashion-mnist", DISTIL_CLDL),
    ("dverge cifar10", {**DISTIL, **NO_ATTACK}),
    ("dverge cifar10 cldl", DISTIL_CLDL),
    ("dverge cifar10 ceat", {**DISTIL, **MEMBER, "pretrained": None}),
    ("dverge cifar100", {**DISTIL, **NO_ATTACK}),
    ("trs mnist", {**TRS_MNIST, "inner_max": True, "n_inner_steps": 6}),
    ("trs mnist cldl", TRS_CLDL),
    ("trs fashion-mnist", TRS_CLDL),
    ("trs cifar10", {**TRS_CIFAR, "inner_max": True, **NO_ATTACK}),
    ("trs cifar100", {**TRS_CIFAR, **AT_CIFAR, "attack_target": "ensemble"}),
    ("cldl mnist", {"gamma": 3, "alpha": 4, "beta": 4, **NO_ATTACK}),
    ("cldl fashion-mnist", {"gamma": 3, "alpha": 2, "beta": 4}),
    ("cldl cifar10", {"gamma": 4, "alpha": 2, "beta": 4}),
    ("cldl cifar100", {"gamma": 6.5, "alpha": 2, "beta": 4}),
    ("ncen fashion-mnist", {"lambda_cos": 0.02, "lambda_norm": 0.02, **NO_ATTACK}),
    ("ncen cifar10", {"lambda_cos": 0.06, "lambda_norm": 0.04}),
    ("ncen cifar100", {"lambda_cos": 0.06, "lambda_norm": 0.04}),
    ("lafed cifar10", {**DISTIL, "smoothing": 0.05, **NO_ATTACK}),
    ("lafed cifar100 ceat", {**DISTIL, **MEMBER, "smoothing": 0.05, "pretrained": None}),
    ("fasten cifar10", {**FASTEN, **NO_ATTACK}),
    ("fasten cifar100", {**FASTEN}),
    ("fasten cifar10 ceat", {**FASTEN, **MEMBER, "pretrained": None}),
    ("ceat cifar10", {**AT_CIFAR, "lam": 1, "mu": 5, "attack_target": "ensemble"}),
    ("ceat cifar100", {**AT_CIFAR, "lam": 1, "mu": 5, "lam_exp": None, "mu_exp": None}),
]


@pytest.mark.parametrize(("key", "expected"), METHOD, ids=[key for key, _ in METHOD])
def test_method_settings(key, expected):
    method, dataset, *source = key.split()
    params = recipes.get(method, dataset, source=source[0] if source else None).get_params()
    assert {name: params[name] for name in expected} == expected


def test_augmentations_have_the_published_sizes():
    crop, _, noise = recipes.get("cldl", "cifar10").augmentation
    assert isinstance(crop, RandomCrop)
    assert crop.padding == 4
    assert isinstance(noise, GaussianNoise)
    assert (noise.sigma, noise.p, noise.clip_values) == (0.045, 0.5, None)
    *_, copies = recipes.get("ncen", "cifar10").augmentation
    assert copies.clip_values == (0, 1)


# --- get -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "dataset", "source"), TRIPLES)
def test_recipes_are_estimators(method, dataset, source):
    clf = recipes.get(method, dataset, source=source)
    assert type(clf) is recipes.METHODS[method]
    assert not hasattr(clf, "net_")
    clf._validate_params()
    copied = clone(clf)
    assert settings(copied) == settings(clf)
    again = type(clf)().set_params(**clf.get_params(deep=False)).set_params(**clf.get_params())
    assert settings(again) == settings(clf)


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_default_source_is_the_methods_own_or_the_first(method, dataset):
    sources = [t[2] for t in TRIPLES if t[:2] == (method, dataset)]
    order = [method, *recipes.SOURCES]
    expected = min(sources, key=order.index)
    default = recipes.get(method, dataset)
    assert settings(default) == settings(recipes.get(method, dataset, source=expected))
    assert sources == sorted(sources, key=order.index)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("CIFAR-10", "cifar10"),
        ("cifar_10", "cifar10"),
        ("Cifar100", "cifar100"),
        ("Fashion_MNIST", "fashion-mnist"),
        ("FashionMNIST", "fashion-mnist"),
        ("F-MNIST", "fashion-mnist"),
        ("MNIST", "mnist"),
    ],
)
def test_names_in_any_spelling(given, name):
    assert settings(recipes.get("CLDL", given)) == settings(recipes.get("cldl", name))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("cdlc", "mnist"), ["method", "'cdlc'", "Did you mean 'cldl'?"]),
        (("NCE", "mnist"), ["method", "Did you mean 'ncen'?"]),
        (("cldl", "cifar11"), ["dataset", "'cifar11'", "Did you mean 'cifar10'?"]),
        (("cldl", "fashion"), ["dataset", "Did you mean 'fashion-mnist'?"]),
        (("cldl", "mnist", "clld"), ["source", "Did you mean 'cldl'?"]),
        (("cldl", None), ["dataset"]),
        ((None, "mnist"), ["method"]),
        (
            ("lafed", "mnist"),
            ["'lafed' on 'mnist'", "'cifar10' (lafed, ceat)", "'cifar100' (lafed, ceat)"],
        ),
        (("ceat", "Fashion-MNIST"), ["'ceat' on 'fashion-mnist'", "'cifar10' (ceat)"]),
        (("gpmr", "mnist"), ["'gpmr' on 'mnist'", "'fashion-mnist' (ncen)"]),
        (("ncen", "mnist"), ["'ncen' on 'mnist'"]),
        (("cldl", "mnist", "ncen"), ["source='ncen'", "'mnist' (cldl)"]),
        (("adp", "fashion-mnist", "adp"), ["source='adp'", "'fashion-mnist' (cldl)"]),
    ],
)
def test_what_nobody_has_published(args, words):
    method, dataset, *source = args
    with pytest.raises(ValueError, match=r"must be one of|no published settings") as raised:
        recipes.get(method, dataset, source=source[0] if source else None)
    for word in words:
        assert word in str(raised.value)


def test_overrides_win():
    clf = recipes.get(
        "adversarial",
        "cifar10",
        device="cpu",
        random_state=0,
        formulation="released",
        batch_size=7,
        attack__n_steps=1,
        module__width=8,
        optimizer__momentum=0.5,
    )
    assert (clf.device, clf.random_state, clf.batch_size) == ("cpu", 0, 7)
    assert clf.formulation == "released"
    assert repr(clf.attack) == repr(PGD(eps=8 / 255, n_steps=1, step_size=2 / 255))
    assert clf.module_params == {**NET, "width": 8}
    assert clf.optimizer_params == {"momentum": 0.5, "weight_decay": 1e-4}
    assert recipes.get("ceat", "cifar10", attack=None).attack is None
    assert recipes.get("cldl", "mnist", module_params=None).module_params is None
    assert recipes.get("dverge", "cifar10", pretrained=None).pretrained is None
    assert settings(recipes.get("adversarial", "cifar10", attack=PGD(eps=0.1), attack__eps=0.2))[
        "attack"
    ] == repr(PGD(eps=0.2))


def test_wrong_overrides_are_refused():
    with pytest.raises(TypeError, match="max_epoch"):
        recipes.get("cldl", "mnist", max_epoch=3)
    with pytest.raises(ValueError, match="attack__n_steps"):
        recipes.get("cldl", "mnist", attack__n_steps=1)


@pytest.mark.parametrize(
    ("method", "dataset", "epochs", "expected"),
    [
        ("cldl", "fashion-mnist", 30, [10, 20]),
        ("cldl", "fashion-mnist", 6, [2, 4]),
        ("cldl", "fashion-mnist", 60, [20, 40]),
        ("cldl", "fashion-mnist", 4, [1, 3]),
        ("cldl", "fashion-mnist", 3, [1, 2]),
        ("cldl", "fashion-mnist", 2, [1]),
        ("cldl", "fashion-mnist", 1, None),
        ("cldl", "mnist", 5, None),
        ("cldl", "cifar10", 10, [5, 8]),
        ("ceat", "cifar10", 12, [8, 10]),
        ("ncen", "cifar10", 4, [1, 2, 3]),
        ("ncen", "cifar10", 3, [1, 2]),
        ("vanilla", "cifar10", np.int64(20), [10, 15]),
    ],
)
def test_milestones_move_with_the_epochs(method, dataset, epochs, expected):
    clf = recipes.get(method, dataset, max_epochs=epochs)
    assert clf.max_epochs == epochs
    assert clf.lr_milestones == expected


def test_milestones_and_pretraining_stay_where_they_are_put():
    clf = recipes.get("dverge", "cifar10", max_epochs=10, lr_milestones=[9, 50])
    assert clf.lr_milestones == [9, 50]
    assert (clf.pretrained.max_epochs, clf.pretrained.lr_milestones) == (200, [100, 150])
    assert recipes.get("cldl", "cifar10", max_epochs=10, lr_milestones=None).lr_milestones is None
    assert recipes.get("cldl", "cifar10", lr_milestones=[3]).max_epochs == 200
    assert recipes.get("dverge", "cifar10", pretrained=3).pretrained == 3


@pytest.mark.parametrize(
    ("method", "dataset"),
    [(m, d) for m in ("dverge", "lafed", "fasten") for d in ("cifar10", "cifar100")],
)
def test_the_start_is_the_vanilla_recipe_with_the_same_network(method, dataset):
    overrides = {"n_estimators": 5, "device": "cpu", "module__width": 4, "random_state": 3}
    clf = recipes.get(method, dataset, max_epochs=7, **overrides)
    assert settings(clf.pretrained) == settings(recipes.get("vanilla", dataset, **overrides))
    assert clf.pretrained.max_epochs == 200
    assert clf.pretrained.module_params["width"] == clf.module_params["width"] == 4


@pytest.mark.parametrize("epochs", ["many", 0, 2.5, None])
def test_wrong_epochs_are_refused_by_fit(epochs):
    clf = recipes.get("vanilla", "fashion-mnist", max_epochs=epochs, device="cpu")
    with pytest.raises(ValueError, match="max_epochs"):
        clf.fit(np.zeros((4, 1, 28, 28), np.float32), [0, 1, 0, 1])


# --- training ------------------------------------------------------------------------------


def tiny(method, dataset, source=None, **overrides):
    """One epoch of the recipe on 12 random images, attacks cut to one step."""
    published = recipes.get(method, dataset, source=source)
    cut = {"max_epochs": 1, "batch_size": 12, "n_estimators": 3, "device": "cpu"}
    if getattr(published, "pretrained", None) is not None:
        cut["pretrained"] = 1
    if getattr(published, "attack", None) is not None:
        cut["attack__n_steps"] = 1
    for name in {"n_steps", "n_inner_steps"} & published.get_params().keys():
        cut[name] = 1
    return recipes.get(method, dataset, source=source, random_state=0, **{**cut, **overrides})


def trains(clf, dataset):
    rng = np.random.default_rng(0)
    X = rng.random((12, *IMAGES[dataset]), dtype=np.float32)
    # with its 4 classes, ADP's limit on members holds
    y = np.arange(12) % 4
    clf.fit(X, y)
    assert clf.n_iter_ == 1
    assert np.isfinite(clf.history_[-1, "train_loss"])
    proba = clf.predict_proba(X)
    assert proba.shape == (12, 4)
    assert np.isfinite(proba).all()


@pytest.mark.parametrize(("method", "dataset"), [p for p in PAIRS if p[1] != "cifar100"])
def test_default_recipes_train(method, dataset):
    thin = {"module__width": 4} if recipes.get(method, dataset).module == "resnet20" else {}
    trains(tiny(method, dataset, **thin), dataset)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dataset", "source"), TRIPLES)
def test_all_recipes_train(method, dataset, source):
    trains(tiny(method, dataset, source), dataset)


def test_a_baseline_of_ones_own_can_be_the_start():
    baseline = tiny("vanilla", "cifar10", "dverge", module__width=2)
    clf = tiny("dverge", "cifar10", pretrained=baseline, module__width=2)
    trains(clf, "cifar10")
    assert clf.pretrained_.lr == 0.1
