"""Fixtures that several tests of reports share."""

from functools import partial

import numpy as np
import pytest
from planted_models import network

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import AutoAttack
from robust_ensembles.inspection import sanity


@pytest.fixture(scope="session")
def net():
    """A sound model; nobody may change it."""
    return network()


def in_steps(number, attacks):
    """The same attacks with fewer steps."""
    return [a.set_params(n_steps=number) if hasattr(a, "n_steps") else a for a in attacks]


@pytest.fixture(scope="module")
def short_walks():
    """The checks' long attacks take a fifth of their steps and queries."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("APGD", "MORA", "TargetedAPGD", "swapped_aggregations"):
            patch.setattr(sanity, name, partial(getattr(sanity, name), n_steps=20))
        patch.setattr(sanity, "_N_QUERIES", 100)
        parts = AutoAttack.attacks
        patch.setattr(AutoAttack, "attacks", lambda self, n=1: in_steps(20, parts(self, n)))
        yield


@pytest.fixture(scope="session")
def lettered(digit_rows):
    """A small ensemble of digits as rows, whose labels are letters; nobody may change it."""
    X, _, y, _ = digit_rows
    settings = {"module_params": {"hidden_sizes": (16,)}, "lr": 0.01, "batch_size": 32}
    estimator = VanillaEnsembleClassifier(
        **settings, n_estimators=2, max_epochs=10, device="cpu", random_state=0
    )
    return estimator.fit(X, np.array(list("abcdefghij"))[y])
