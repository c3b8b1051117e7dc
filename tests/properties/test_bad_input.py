"""Bad input ends before any training, in a message that says how to mend it."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from small_estimators import CLASSES, DIVERSE, make
from torch import nn

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
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
from robust_ensembles.training import EnsembleNet

ADVERSARIAL = [AdversarialEnsembleClassifier, CEATEnsembleClassifier]
DISTILLING = [DVERGEEnsembleClassifier, LAFEDEnsembleClassifier, FASTENEnsembleClassifier]


@pytest.fixture
def untrained(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("training began")

    monkeypatch.setattr(EnsembleNet, "train_epochs", fail)


pytestmark = pytest.mark.usefixtures("untrained")


@pytest.fixture
def trained(monkeypatch, digit_rows):
    X, _, y, _ = digit_rows
    with monkeypatch.context() as patch:
        patch.undo()
        patch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
        yield make(clip_values=(0, 1)).fit(X, y)


def rejects(estimator, X, y, match, error=ValueError, **fit_params):
    with pytest.raises(error, match=match):
        estimator.fit(X, y, **fit_params)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(digit_rows, cls, value):
    X, _, y, _ = digit_rows
    X = X.copy()
    X[3, 5] = value
    rejects(make(cls), X, y, "NaN|infinity")


@pytest.mark.parametrize(
    ("low", "high", "excess"), [(0, 1.25, "0.25"), (-0.5, 1, "0.5"), (-0.5, 1.25, "0.5")]
)
def test_outside_the_box(digit_rows, low, high, excess):
    X, _, y, _ = digit_rows
    scaled = low + (high - low) * X
    match = rf"up to {excess} outside clip_values=\(0.0, 1.0\).*inside the module"
    rejects(make(clip_values=(0, 1)), scaled, y, match)


def test_rounding_is_inside_the_box(digit_rows, monkeypatch):
    X, _, y, _ = digit_rows
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
    assert make(clip_values=(0, 1)).fit(X - np.float32(3e-8), y).clip_values_ == (0, 1)
    assert make(clip_values=None).fit(X, y).clip_values_ is None
    assert make(clip_values=(-1, 2)).fit(X, y).clip_values_ == (-1, 2)
    assert make().fit(3 * X, y).clip_values_ is None  # rows of features need no box


def test_bytes_outside_the_box(digit_rows):
    X, _, y, _ = digit_rows
    X = (255 * X).astype(np.uint8)
    rejects(make(clip_values=(0, 0.5)), X, y, "up to 0.5 outside")


@pytest.mark.parametrize("again", ["partial_fit", "warm_start"])
def test_outside_the_box_later(digit_rows, trained, again):
    """An attack would clip X silently, and train on something else."""
    X, _, y, _ = digit_rows
    trained.set_params(warm_start=True)
    method = trained.fit if again == "warm_start" else trained.partial_fit
    with pytest.raises(ValueError, match="up to 1 outside"):
        method(2 * X, y)


@pytest.mark.parametrize("box", [(1, 0), (0,), (0, 1, 2), ("a", 1)])
def test_no_box(digit_rows, box):
    X, _, y, _ = digit_rows
    rejects(make(clip_values=box), X, y, r"pair \(low, high\)")


def test_images_outside_the_unit_box_warn(digit_images, monkeypatch):
    X, _, y, _ = digit_images
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
    with pytest.warns(UserWarning, match=r"spans \[-1, 1\].*normalise inside the module") as seen:
        estimator = make(module="mlp").fit(2 * X - 1, y)
    assert seen[0].filename == __file__
    assert estimator.clip_values_ is None


def test_rank(digit_images):
    X, _, y, _ = digit_images
    rejects(make(), X[:, 0], y, r"got \(200, 8, 8\).*X\[:, None\]")
    rejects(make(), X[..., None], y, r"got \(200, 1, 8, 8, 1\)")
    rejects(make(), X[:, 0, 0, 0], y, "Expected 2D array, got 1D array")
    rejects(make(), X[0, 0, 0, 0], y, "Expected 2D array, got scalar array")


@pytest.mark.parametrize("module", ["lenet5", "resnet20", None])
def test_flat_rows_for_a_convolution(digit_rows, module):
    X, _, y, _ = digit_rows
    settings = {"module": module, "module_params": None}
    if module is None:
        settings["module"] = nn.Conv2d(1, 10, 8)
        settings["n_estimators"] = 1
    rejects(make(**settings), X, y, "input_shape")


def test_channels(digit_images):
    X, _, y, _ = digit_images

    class GreyOnly(nn.Sequential):
        def __init__(self, n_classes):
            super().__init__(nn.Conv2d(1, n_classes, 8), nn.Flatten())

    rejects(make(module=GreyOnly), np.repeat(X, 3, axis=1), y, r"\(3, 8, 8\)")


def test_input_shape(digit_rows, digit_images):
    X, _, y, _ = digit_rows
    rejects(make(input_shape=(1, 8, 9)), X, y, "72 numbers, but X has 64")
    rejects(make(input_shape=(1, 4, 16)), digit_images[0], y, r"\(1, 4, 16\).*\(1, 8, 8\)")


@pytest.mark.parametrize("shape", [(5, 63), (5, 1, 8, 9), (5, 1, 4, 16), (5, 8, 8), (5, 2, 8, 4)])
def test_other_shape_in_predict(trained, shape):
    with pytest.raises(ValueError, match="X"):
        trained.predict(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("shape", [(5, 1, 4, 16), (5, 4, 4, 4)])
def test_other_images_of_the_same_size(digit_images, monkeypatch, shape):
    X, _, y, _ = digit_images
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
    estimator = make(module="mlp").fit(X, y)
    with pytest.raises(ValueError, match=r"was fitted with \(1, 8, 8\)"):
        estimator.predict(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("cls", CLASSES)
def test_one_class(digit_rows, cls):
    X, _, y, _ = digit_rows
    rejects(make(cls), X, np.full_like(y, 3), r"1 class \(\[3\]\)")


def test_labels(digit_rows, trained):
    X, _, y, _ = digit_rows
    rejects(make(), X, y + 0.5, "Unknown label type")
    rejects(make(), X, y[:-1], "inconsistent numbers of samples")
    rejects(make(), X, None, "requires y to be passed")
    with pytest.raises(ValueError, match=r"not among the classes: \[55\]"):
        trained.partial_fit(X[:3], [1, 55, 2])
    with pytest.raises(ValueError, match=r"not among the classes: \[9\]"):
        make().partial_fit(X, y, classes=range(9))


def test_members_that_disagree_on_classes(digit_rows):
    X, _, y, _ = digit_rows
    module = ["mlp", lambda: MLP((64,), 7), "mlp"]
    rejects(make(module=module), X, y, "member 1.*returns 7 classes, y has 10")


@pytest.mark.parametrize(
    ("params", "match", "error"),
    [
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
        ({"batch_size": 1.5}, "batch_size", ValueError),
        ({"augmentation": [3]}, "RandomCrop", TypeError),
        ({"train_split": 1.5}, "train_split", ValueError),
        ({"class_weight": "balance"}, "class_weight", ValueError),
        ({"callbacks": object()}, "callbacks", ValueError),
    ],
)
def test_parameters(digit_rows, params, match, error):
    X, _, y, _ = digit_rows
    rejects(make(**params), X, y, match, error)


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
        ({"calibration": CollaborativeCalibration()}, "attack=None; give an attack"),
        ({"attack": "pgd10"}, "attack_from_name in robust_ensembles.metrics makes of a name"),
        ({"formulation": "printed"}, "'formulation' parameter"),
    ],
    ids=str,
)
def test_options_of_every_method(digit_rows, cls, params, match):
    X, _, y, _ = digit_rows
    rejects(make(cls, **params), X, y, match)


def test_calibration_that_is_changed_later(digit_rows, monkeypatch):
    X, _, y, _ = digit_rows
    estimator = make(GALEnsembleClassifier, attack=PGD(), calibration=CollaborativeCalibration())
    with monkeypatch.context() as patch:
        patch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
        estimator.fit(X, y)
    with pytest.raises(ValueError, match="attack=None"):
        estimator.set_params(attack=None).partial_fit(X, y)
    estimator.set_params(attack=PGD(), calibration__lam="1")
    with pytest.raises(ValueError, match="'lam' parameter"):
        estimator.partial_fit(X, y)


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (ADPEnsembleClassifier, {"alpha": -1.0}),
        (ADPEnsembleClassifier, {"beta": "0.5"}),
        (ADPEnsembleClassifier, {"regularize_adversarial": 2}),
        (GALEnsembleClassifier, {"lam": -0.5}),
        (GALEnsembleClassifier, {"cross_entropy_reduce": None}),
        (GALEnsembleClassifier, {"cos_eps_mode": "torch"}),
        (GPMREnsembleClassifier, {"lambda_div": -1.0}),
        (GPMREnsembleClassifier, {"lambda_eq": None}),
        (TRSEnsembleClassifier, {"scale": -1.0}),
        (TRSEnsembleClassifier, {"coeff": "20"}),
        (TRSEnsembleClassifier, {"lamda": -1.0}),
        (TRSEnsembleClassifier, {"delta_init": -0.1}),
        (TRSEnsembleClassifier, {"delta_final": None}),
        (TRSEnsembleClassifier, {"n_inner_steps": 0}),
        (TRSEnsembleClassifier, {"inner_max": None}),
        (TRSEnsembleClassifier, {"inner_momentum": "yes"}),
        (TRSEnsembleClassifier, {"norm_power": 3}),
        (TRSEnsembleClassifier, {"gradient_scale": "max"}),
        (TRSEnsembleClassifier, {"cross_entropy_reduce": "max"}),
        (TRSEnsembleClassifier, {"cos_eps_mode": "torch3"}),
        (LAFEDEnsembleClassifier, {"smoothing": 1.0}),
        (LAFEDEnsembleClassifier, {"smoothing": -0.1}),
        (FASTENEnsembleClassifier, {"beta": -3.0}),
        (FASTENEnsembleClassifier, {"eps_init": -0.1}),
        (FASTENEnsembleClassifier, {"inter_gradient": None}),
        (FASTENEnsembleClassifier, {"clean_cross_entropy": "no"}),
        *(
            (cls, params)
            for cls in DISTILLING
            for params in (
                {"eps": -0.07},
                {"step_size": 0.0},
                {"n_steps": 0},
                {"n_steps": 1.5},
                {"layers": "classifier"},
                {"layer_schedule": "batch"},
                {"pretrained": 0},
                {"pretrained": 2.5},
                {"pretrained": "vanilla"},
                {"pretrained": VanillaEnsembleClassifier},
                {"pretrained": LogisticRegression()},
            )
        ),
    ],
)
def test_parameters_of_the_methods(digit_rows, cls, params):
    X, _, y, _ = digit_rows
    (name,) = params
    rejects(make(cls, **params), X, y, f"The '{name}' parameter of {cls.__name__} must be")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_is_absent(digit_rows):
    X, _, y, _ = digit_rows
    rejects(make(device="cuda"), X, y, "no such device here; use device='auto' or 'cpu'")


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (np.r_[-1.0, np.ones(199)], "[Nn]egative"),
        (np.zeros(200), "positive weight|zero"),
        (np.ones(199), r"sample_weight.shape|200"),
        (np.r_[np.nan, np.ones(199)], "NaN"),
    ],
)
def test_sample_weight(digit_rows, weight, match):
    X, _, y, _ = digit_rows
    rejects(make(), X, y, match, sample_weight=weight)


def test_class_weight(digit_rows):
    X, _, y, _ = digit_rows
    rejects(make(class_weight=dict.fromkeys(range(10), 0.0)), X, y, "positive weight")
    rejects(make(class_weight={3: -1.0}), X, y, "class_weight must not be negative")


def test_too_large_for_float32(digit_rows, trained):
    X, _, y, _ = digit_rows
    X = X.astype(np.float64) * 1e40
    rejects(make(), X, y, "1e[+]40, too large for float32; scale X")
    with pytest.raises(ValueError, match="too large for float32"):
        trained.predict(X)


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
def test_too_few_members(digit_rows, monkeypatch, cls, least, match):
    X, _, y, _ = digit_rows
    for n in range(1, least):
        message = f"n_estimators={n} is too few.*{match}.*n_estimators={least} or more"
        rejects(make(cls, n_estimators=n), X, y, message)
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
    make(cls, n_estimators=least).fit(X, y)


def test_not_fitted(digit_rows):
    X, _, y, _ = digit_rows
    estimator = VanillaEnsembleClassifier()
    for method in ("predict", "predict_proba", "predict_log_proba", "member_predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(estimator, method)(X)
    with pytest.raises(NotFittedError):
        estimator.as_module()
    with pytest.raises(NotFittedError):
        estimator.score(X, y)
