"""What the armour tests have found, one small test each."""

import numpy as np
import pandas as pd
import pytest
import torch
from small import fitted, make, rows

from robust_ensembles import CLDLEnsembleClassifier, DVERGEEnsembleClassifier, recipes
from robust_ensembles.attacks import FGSM, MORA, PGD, Transfer, WorstCase
from robust_ensembles.inspection import robustness_report
from robust_ensembles.metrics import get_robust_scorer, make_robust_scorer, robust_accuracy_score
from robust_ensembles.state.checkpoints import best_epoch

FIT = {
    "empty images": (np.zeros((0, 1, 4, 4)), [], "0 sample"),
    "ragged rows": ([[1, 2], [3]], [0, 1], "X is no array.*same length"),
    "meta tensor": (torch.zeros(2, 4, device="meta"), [0, 1], "meta device"),
}


@pytest.mark.parametrize("name", FIT)
def test_inputs_of_fit(name):
    X, y, match = FIT[name]
    with pytest.raises((TypeError, ValueError), match=match):
        make().fit(X, y)


def test_tensors_with_a_gradient_are_arrays():
    X, y = rows()
    expected = make().fit(X, y).predict_proba(X)
    tensor = torch.tensor(X, requires_grad=True)
    estimator = make().fit(tensor, torch.tensor(y), torch.ones(len(y)))
    np.testing.assert_allclose(estimator.predict_proba(tensor), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e308, 1e-320, 1.0])
def test_the_unit_of_weights_does_not_matter(scale):
    X, y = rows()
    weight = np.arange(1.0, 10.0)
    expected = make().fit(X, y, np.ones(9)).predict_proba(X)
    np.testing.assert_array_equal(make().fit(X, y, np.full(9, scale)).predict_proba(X), expected)
    assert (make().fit(X, y, weight).predict_proba(X) != expected).any()


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0])
def test_class_weights_that_are_no_weights(weight):
    with pytest.raises(ValueError, match="class_weight"):
        make(class_weight={0: weight}).fit(*rows())


@pytest.mark.parametrize("classes", [["a", 1, None], [[0, 1], [2, 3]], [0.0, 1.0, 2.0, np.nan]])
def test_classes_of_partial_fit(classes):
    X, y = rows()
    with pytest.raises(ValueError, match="classes must be a flat list of labels"):
        make().partial_fit(X, y, classes=classes)


def test_the_text_of_a_number_is_another_label():
    X, y = rows()
    with pytest.raises(ValueError, match="not among the classes"):
        make().partial_fit(X, y + 9).partial_fit(X, (y + 9).astype(str))


def test_no_label_for_outputs_that_are_not_finite():
    X, _ = rows()
    with pytest.raises(ValueError, match="NaN or infinite for 9 of 9 samples"):
        fitted("steep").predict(np.full_like(X, 3e38))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_shape", ("a", "b")),
        ("input_shape", [None]),
        ("lr_milestones", np.array(1)),
        ("lr_milestones", ["a"]),
        ("lr_milestones", torch.tensor(1.0)),
        ("clip_values", ("a", "b")),
        ("clip_values", (0, np.inf)),
        ("train_split", int),
        ("train_split", 1e-300),
        ("augmentation", object),
        ("augmentation", torch.nn.Linear(2, 2)),
        ("augmentation", lambda x, generator: x[:1]),
        ("optimizer", torch.optim.SparseAdam),
        ("optimizer", torch.optim.LBFGS),
        ("optimizer_params", {1: 2}),
        ("optimizer_params", {"betas": 3}),
        ("module_params", {1: 2}),
        ("module", int),
        ("callbacks", [1]),
    ],
)
def test_parameters_are_named_before_training(name, value):
    estimator = make(**{name: value})
    with pytest.raises((TypeError, ValueError), match=name):
        estimator.fit(*rows())
    assert not hasattr(estimator, "net_")


def test_parameters_of_single_methods():
    with pytest.raises(ValueError, match=r"gamma.*64 bits"):
        make(CLDLEnsembleClassifier, gamma=2**70).fit(*rows())
    with pytest.raises(ValueError, match="layers must be a list of names"):
        make(DVERGEEnsembleClassifier, layers=(0, 1, 2)).fit(*rows())


X_TENSOR, Y_TENSOR = (torch.as_tensor(part) for part in rows())


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (PGD(eps=True), "eps"),
        (PGD(eps=1e300, norm="l2"), "eps"),
        (PGD(n_steps=1.5), "n_steps must be a whole number"),
        (PGD(batch_size=[]), "batch_size must be a whole number"),
        (PGD(random_start="no"), "random_start must be True or False"),
        (PGD(random_state="a"), "random_state"),
        (PGD(norm=np.array([1, 2])), "norm must be one of"),
        (MORA(shares=0.5), "shares must be a list"),
        (MORA(shares="auto"), "shares"),
        (WorstCase(3), "at least one attack"),
        (Transfer(fitted("other"), 2), "attack must be an attack"),
    ],
)
def test_parameters_of_attacks(attack, match):
    with pytest.raises((TypeError, ValueError), match=match):
        attack(fitted().as_module(), X_TENSOR, Y_TENSOR)


@pytest.mark.parametrize(
    ("X", "y", "match"),
    [
        (X_TENSOR.numpy(), Y_TENSOR, "X must be a torch tensor"),
        (X_TENSOR.to("meta"), Y_TENSOR, "holds numbers"),
        (X_TENSOR[:, 0], Y_TENSOR, "X must have shape"),
        (X_TENSOR[:, :3], Y_TENSOR, "does not take X"),
        (X_TENSOR, Y_TENSOR + 1, "from 0 to 2"),
        (X_TENSOR, -Y_TENSOR, "from 0 to 2"),
        (X_TENSOR, Y_TENSOR.float(), "y must be whole numbers"),
    ],
)
def test_batches_that_cannot_be_attacked(X, y, match):
    for attack in (FGSM(), WorstCase([FGSM()]), Transfer(fitted("other"), FGSM())):
        with pytest.raises((TypeError, ValueError), match=match):
            attack(fitted().as_module(), X, y)


@pytest.mark.parametrize("X", [1.0, [[1, 2], [3]], pd.Series(["a"]), np.full((9, 4), 1j)])
def test_generate(X):
    with pytest.raises((TypeError, ValueError), match="X"):
        FGSM().generate(fitted(), X, np.arange(9) % 3)


def test_scorers():
    X, y = rows()
    with pytest.raises(TypeError, match="attack must be an attack"):
        robust_accuracy_score(fitted(), X, y, attack="fgsm")
    with pytest.raises(TypeError, match="is no fitted classifier"):
        make_robust_scorer(FGSM())(None, X, y)
    with pytest.raises(ValueError, match=r"y must have shape \(9,\)"):
        make_robust_scorer(FGSM())(fitted(), X, y[:, None])
    with pytest.raises(TypeError, match="name of an attack must be a text"):
        get_robust_scorer(3)
    with pytest.raises(ValueError, match="is no name of an attack"):
        get_robust_scorer("pgd" + 5000 * "9")
    with pytest.raises(TypeError, match="attacks must be an attack"):
        robustness_report(fitted(), X, y, 0.5)


def test_overrides_that_a_recipe_has_not():
    with pytest.raises(TypeError, match="GPMREnsembleClassifier has no parameters"):
        recipes.get("gpmr", "cifar10", pretrained=1)


def test_truth_values_are_no_numbers():
    with pytest.raises(ValueError, match="eps must be a number; got True"):
        make(DVERGEEnsembleClassifier, eps=True).fit(*rows())


@pytest.mark.parametrize("conditional", [False, True])
def test_weights_of_scores(conditional):
    X, y = rows()
    options = {"attack": FGSM(eps=0.0), "conditional": conditional}

    def score(weight):
        return robust_accuracy_score(fitted(), X, y, sample_weight=weight, **options)

    assert score(np.full(9, 1e308)) == pytest.approx(score(None))
    for weight in (np.zeros(9), np.array([-1.0] + [1.0] * 8), np.full(9, 1j)):
        with pytest.raises(ValueError, match=r"positive weight|non-zero|Negative values|complex"):
            score(weight)


def test_networks_that_give_no_logits():
    X = np.zeros((4, 1, 4, 4), dtype=np.float32)
    with pytest.raises(ValueError, match=r"module: member 0 \(ReLU\) returns shape"):
        make(module=torch.nn.ReLU).fit(X, [0, 1, 2, 0])


def test_scorers_refuse_iterators():
    X, y = rows()
    with pytest.raises(TypeError, match="X must hold numbers and y labels"):
        get_robust_scorer("fgsm")(fitted(), X, (label for label in y))


def test_checkpoints_with_losses_that_are_no_numbers():
    with pytest.raises(ValueError, match="could not convert"):
        best_epoch([{"train_loss": "low"}])
