"""scikit-learn's own checks of the contract."""

import pytest
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from small_estimators import CLASSES, COVERING, make_full

from robust_ensembles import ADPEnsembleClassifier, CLDLEnsembleClassifier

REASON = "float32 members cannot agree to rtol 1e-7 where the batches are not the same"
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": REASON}
# three gradients of two features cannot be orthogonal: the published weights would rule the loss.
# ADP's members must be fewer than the classes, and most checks have two
OPTIONS = {
    CLDLEnsembleClassifier: {"beta": 0.5},
    ADPEnsembleClassifier: {"n_estimators": 1},
}


def small(cls):
    return make_full(cls, lr=0.05, max_epochs=8, batch_size=64, **OPTIONS.get(cls, {}))


def with_checks(classes):
    return parametrize_with_checks(
        [small(cls) for cls in classes], expected_failed_checks=lambda _: EXPECTED
    )


@with_checks(COVERING)
def test_sklearn_check(estimator, check):
    check(estimator)


@pytest.mark.slow
@with_checks([cls for cls in CLASSES if cls not in COVERING])
def test_sklearn_check_of_the_others(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", CLASSES)
def test_checks_are_not_vacuous(cls):
    """A tag such as two_d_array=False leaves one check of about 60, and all is green."""
    estimator = small(cls)
    checks = list(estimator_checks_generator(estimator))
    assert len(checks) >= 60
    assert get_tags(estimator).input_tags.two_d_array
