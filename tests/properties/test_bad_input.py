"""Bad input ends before any training, in a message that says how to mend it."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from small_estimators import CLASSES, DIVERSE, FEATURE_SPACE, make
from torch import nn

from robust_ensembles import (
    ADPEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    GPMREnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.modules import MLP

# --- X -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(rejects, digit_rows, cls, value):
    X, _, y, _ = digit_rows
    X = X.copy()
    X[3, 5] = value
    rejects(make(cls), X, y, "NaN|infinity")


# by the name of the digits' array to start from
ROWS = {
    "above the box": (lambda X: 1.25 * X, {"clip_values": (0, 1)}, "up to 0.25 outside clip_v"),
    "below": (
        lambda X: 1.5 * X - 0.5,
        {"clip_values": (0, 1)},
        r"up to 0.5 .*\(0.0, 1.0\).*inside",
    ),
    "both": (lambda X: 1.75 * X - 0.5, {"clip_values": (0, 1)}, r"up to 0.5 .*the module"),
    "bytes": (
        lambda X: (255 * X).astype(np.uint8),
        {"clip_values": (0, 0.5)},
        "up to 0.5 outside",
    ),
    "float64": (lambda X: X.astype(np.float64) * 1e40, {}, "1e[+]40, too large for .*; scale X"),
    "input shape": (lambda X: X, {"input_shape": (1, 8, 9)}, "72 numbers, but X has 64"),
    **{
        f"flat rows for {name}": (
            lambda X: X,
            {"module": name, "module_params": None},
            "input_shape",
        )
        for name in ("lenet5", "resnet20")
    },
    "flat rows for a convolution": (
        lambda X: X,
        {"module": nn.Conv2d(1, 10, 8), "n_estimators": 1},
        "input_shape",
    ),
}


class GreyOnly(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Conv2d(1, n_classes, 8), nn.Flatten())


IMAGES = {
    "no channel": (lambda X: X[:, 0], {}, r"got \(200, 8, 8\).*X\[:, None\]"),
    "five axes": (lambda X: X[..., None], {}, r"got \(200, 1, 8, 8, 1\)"),
    "one axis": (lambda X: X[:, 0, 0, 0], {}, "Expected 2D array, got 1D array"),
    "no axis": (lambda X: X[0, 0, 0, 0], {}, "Expected 2D array, got scalar array"),
    "channels": (lambda X: np.repeat(X, 3, axis=1), {"module": GreyOnly}, r"\(3, 8, 8\)"),
    "shape": (lambda X: X, {"input_shape": (1, 4, 16)}, r"\(1, 4, 16\).*\(1, 8, 8\)"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(rejects, digit_rows, name):
    X, _, y, _ = digit_rows
    change, params, match = ROWS[name]
    rejects(make(**params), change(X), y, match)


@pytest.mark.parametrize("name", IMAGES)
def test_images(rejects, digit_images, name):
    X, _, y, _ = digit_images
    change, params, match = IMAGES[name]
    rejects(make(**params), change(X), y, match)


@pytest.mark.usefixtures("untrained")
def test_inside_the_box(digit_rows):
    X, _, y, _ = digit_rows
    # by rounding alone it is not outside; rows of features need no box
    for params, given, box in [
        ({"clip_values": (0, 1)}, X - np.float32(3e-8), (0, 1)),
        ({"clip_values": None}, X, None),
        ({"clip_values": (-1, 2)}, X, (-1, 2)),
        ({}, 3 * X, None),
    ]:
        assert make(**params).fit(given, y).clip_values_ == box


@pytest.mark.usefixtures("untrained")
def test_images_outside_the_unit_box_warn(digit_images):
    X, _, y, _ = digit_images
    with pytest.warns(UserWarning, match=r"spans \[-1, 1\].*normalise inside the module") as seen:
        estimator = make(module="mlp").fit(2 * X - 1, y)
    assert seen[0].filename == __file__
    assert estimator.clip_values_ is None


# --- X and y of a fitted estimator --------------------------------------------------------------


@pytest.fixture
def boxed(untrained, digit_rows):
    X, _, y, _ = digit_rows
    return make(clip_values=(0, 1), warm_start=True).fit(X, y)


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
def test_outside_the_box_later(digit_rows, boxed, method):
    """An attack would clip X silently, and train on something else."""
    X, _, y, _ = digit_rows
    with pytest.raises(ValueError, match="up to 1 outside"):
        getattr(boxed, method)(2 * X, y)


@pytest.mark.parametrize("shape", [(5, 63), (5, 1, 8, 9), (5, 1, 4, 16), (5, 8, 8), (5, 2, 8, 4)])
def test_other_shape_in_predict(boxed, shape):
    with pytest.raises(ValueError, match="X"):
        boxed.predict(np.zeros(shape, dtype=np.float32))
    with pytest.raises(ValueError, match="too large for float32"):
        boxed.predict(np.full((5, 64), 1e40))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("shape", [(5, 1, 4, 16), (5, 4, 4, 4)])
def test_other_images_of_the_same_size(digit_images, shape):
    X, _, y, _ = digit_images
    estimator = make(module="mlp").fit(X, y)
    with pytest.raises(ValueError, match=r"was fitted with \(1, 8, 8\)"):
        estimator.predict(np.zeros(shape, dtype=np.float32))


def test_not_fitted(digit_rows):
    X, _, y, _ = digit_rows
    estimator = VanillaEnsembleClassifier()
    for ask in (
        estimator.predict,
        estimator.predict_proba,
        estimator.predict_log_proba,
        estimator.member_predict_proba,
        lambda X: estimator.as_module(),
        lambda X: estimator.score(X, y),
    ):
        with pytest.raises(NotFittedError):
            ask(X)


# --- y and weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_one_class(rejects, digit_rows, cls):
    X, _, y, _ = digit_rows
    rejects(make(cls), X, np.full_like(y, 3), r"1 class \(\[3\]\)")


def test_labels(rejects, digit_rows):
    X, _, y, _ = digit_rows
    rejects(make(), X, y + 0.5, "Unknown label type")
    rejects(make(), X, y[:-1], "inconsistent numbers of samples")
    rejects(make(), X, None, "requires y to be passed")
    module = ["mlp", lambda: MLP((64,), 7), "mlp"]
    rejects(make(module=module), X, y, "member 1.*returns 7 classes, y has 10")
    with pytest.raises(ValueError, match=r"not among the classes: \[9\]"):
        make().partial_fit(X, y, classes=range(9))


def test_new_labels_later(digit_rows, boxed):
    with pytest.raises(ValueError, match=r"not among the classes: \[55\]"):
        boxed.partial_fit(digit_rows[0][:3], [1, 55, 2])


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (np.r_[-1.0, np.ones(199)], "[Nn]egative"),
        (np.zeros(200), "positive weight|zero"),
        (np.ones(199), r"sample_weight.shape|200"),
        (np.r_[np.nan, np.ones(199)], "NaN"),
    ],
)
def test_sample_weight(rejects, digit_rows, weight, match):
    X, _, y, _ = digit_rows
    rejects(make(), X, y, match, sample_weight=weight)


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "match", "error"),
    [
        *(({"clip_values": box}, r"pair \(low, high\)", ValueError) for box in [(1, 0), (0,)]),
        *(({"clip_values": box}, r"\(low, high\)", ValueError) for box in [(0, 1, 2), ("a", 1)]),
        ({"module": "lenet"}, "Did you mean 'lenet5'", ValueError),
        ({"module": ["mlp"] * 2}, "lists 2 networks", ValueError),
        ({"module": nn.Linear(64, 10)}, "one instance of Linear", ValueError),
        ({"module": 3}, "module", ValueError),
        ({"module": dict}, "not an nn.Module", TypeError),
        ({"module": "mlp", "module_params": {"widht": 3}}, "widht", TypeError),
        ({"optimizer": "adamm"}, "Did you mean 'adam'", ValueError),
        ({"optimizer": nn.Linear}, "class of torch.optim", TypeError),
        ({"optimizer_params": {"lr": 1.0}}, "lr=", ValueError),
        ({"optimizer_params": {"momentun": 1.0}}, "momentun", TypeError),
        ({"device": "gpu"}, "no torch device", ValueError),
        ({"device": "cuda:99"}, "device='auto' or 'cpu'", ValueError),
        ({"lr": 0.0}, "lr", ValueError),
        ({"max_epochs": 0}, "max_epochs", ValueError),
        ({"n_estimators": 0}, "n_estimators", ValueError),
        *(({"batch_size": n}, "batch_size", ValueError) for n in (1.5, 0, -1, "large", None)),
        ({"augmentation": [3]}, "RandomCrop", TypeError),
        ({"train_split": 1.5}, "train_split", ValueError),
        ({"class_weight": "balance"}, "class_weight", ValueError),
        ({"class_weight": dict.fromkeys(range(10), 0.0)}, "positive weight", ValueError),
        ({"class_weight": {3: -1.0}}, "class_weight must not be negative", ValueError),
        ({"callbacks": slice(3)}, "callbacks", ValueError),
        ({"checkpoint_dir": 3}, "checkpoint_dir", ValueError),
    ],
    ids=str,
)
def test_parameters(rejects, digit_rows, params, match, error):
    X, _, y, _ = digit_rows
    rejects(make(**params), X, y, match, error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_is_absent(rejects, digit_rows):
    X, _, y, _ = digit_rows
    rejects(make(device="cuda"), X, y, "no such device here; use device='auto' or 'cpu'")


@pytest.mark.parametrize("cls", DIVERSE)
@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"attack": 10}, "The 'attack' parameter .*BoundedAttack"),
        ({"attack": PGD(eps=-0.1)}, "PGD: eps must be .* >= 0"),
        ({"attack": PGD(targeted=True)}, "targeted=False"),
        ({"attack": PGD(eps=8)}, "eps=8 is more than X can change.* did you mean 8/255"),
        ({"attack": PGD(), "attack_target": "members"}, "'attack_target' parameter"),
        ({"attack": PGD(), "craft_bn": "frozen"}, "'craft_bn' parameter"),
        ({"attack": PGD(), "calibration": (1, 5)}, "'calibration' parameter .*Collaborative"),
        ({"attack": PGD(), "calibration": CollaborativeCalibration(mu=-1)}, "'mu' parameter"),
        ({"attack": PGD(), "calibration": CollaborativeCalibration(peers="all")}, "'peers' param"),
        ({"calibration": CollaborativeCalibration()}, "attack=None; give an attack, .*=PGD"),
        ({"attack": "pgd10"}, "attack_from_name in robust_ensembles.metrics makes of a name"),
        ({"formulation": "printed"}, "'formulation' parameter"),
    ],
    ids=str,
)
def test_options_of_every_method(rejects, digit_rows, cls, params, match):
    X, _, y, _ = digit_rows
    rejects(make(cls, **params), X, y, match)
    with pytest.raises(ValueError, match=match):
        make(cls, **params).partial_fit(X, y)


@pytest.mark.usefixtures("untrained")
def test_calibration_that_is_changed_later(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make(GALEnsembleClassifier, attack=PGD(), calibration=CollaborativeCalibration())
    estimator.fit(X, y)
    with pytest.raises(ValueError, match="attack=None"):
        estimator.set_params(attack=None).partial_fit(X, y)
    estimator.set_params(attack=PGD(), calibration__lam="1")
    with pytest.raises(ValueError, match="'lam' parameter"):
        estimator.partial_fit(X, y)


BAD = {
    ADPEnsembleClassifier: {"alpha": [-1.0], "beta": ["0.5"], "regularize_adversarial": [2]},
    GALEnsembleClassifier: {
        "lam": [-0.5],
        "cross_entropy_reduce": [None],
        "cos_eps_mode": ["torch"],
    },
    GPMREnsembleClassifier: {"lambda_div": [-1.0], "lambda_eq": [None]},
    TRSEnsembleClassifier: {
        "scale": [-1.0],
        "coeff": ["20"],
        "lamda": [-1.0],
        "delta_init": [-0.1],
        "delta_final": [None],
        "n_inner_steps": [0],
        "inner_max": [None],
        "inner_momentum": ["yes"],
        "norm_power": [3],
        "gradient_scale": ["max"],
        "cross_entropy_reduce": ["max"],
        "cos_eps_mode": ["torch3"],
    },
    LAFEDEnsembleClassifier: {"smoothing": [1.0, -0.1]},
    FASTENEnsembleClassifier: {
        "beta": [-3.0],
        "eps_init": [-0.1],
        "inter_gradient": [None],
        "clean_cross_entropy": ["no"],
    },
}
UNFIT = [0, 2.5, "vanilla", VanillaEnsembleClassifier, LogisticRegression()]
BAD_IN_FEATURE_SPACE = {
    "eps": [-0.07],
    "step_size": [0.0],
    "n_steps": [0, 1.5],
    "layers": ["classifier"],
    "layer_schedule": ["batch"],
    "pretrained": UNFIT,
}
OWN = [
    (cls, name, value)
    for cls in CLASSES
    for options in (BAD.get(cls, {}), BAD_IN_FEATURE_SPACE if cls in FEATURE_SPACE else {})
    for name, values in options.items()
    for value in values
]


@pytest.mark.parametrize(("cls", "name", "value"), OWN)
def test_parameters_of_the_methods(rejects, digit_rows, cls, name, value):
    X, _, y, _ = digit_rows
    match = f"The '{name}' parameter of {cls.__name__} must be"
    rejects(make(cls, **{name: value}), X, y, match)


@pytest.mark.parametrize(
    ("cls", "least", "match"),
    [
        (GALEnsembleClassifier, 2, "GAL compares"),
        (GPMREnsembleClassifier, 2, "GPMR compares"),
        (TRSEnsembleClassifier, 2, "TRS compares"),
        (DVERGEEnsembleClassifier, 2, "DVERGE trains"),
        (FASTENEnsembleClassifier, 2, "FASTEN trains"),
        (LAFEDEnsembleClassifier, 3, "use DVERGE for two"),
    ],
)
def test_too_few_members(rejects, digit_rows, cls, least, match):
    X, _, y, _ = digit_rows
    for n in range(1, least):
        message = f"n_estimators={n} is too few.*{match}.*n_estimators={least} or more"
        rejects(make(cls, n_estimators=n), X, y, message)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("cls", [c for c in DIVERSE if c is not LAFEDEnsembleClassifier])
def test_two_members_are_enough(digit_rows, cls):
    X, _, y, _ = digit_rows
    assert make(cls, n_estimators=2).fit(X, y).n_iter_ == 0
