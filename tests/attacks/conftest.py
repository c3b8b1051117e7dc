"""Fixtures that several tests of attacks share."""

import pytest
import torch
from small_models import partly_wrong

from robust_ensembles.attacks import AutoAttack, EnsembleAutoAttack


@pytest.fixture(scope="session")
def problem():
    """A module, 40 samples, and labels that it predicts for most; nobody may change them."""
    given, kept = partly_wrong(), partly_wrong()
    yield given
    assert torch.equal(given[1], kept[1])
    assert torch.equal(given[2], kept[2])
    assert torch.equal(given[0](given[1]), kept[0](kept[1]))


@pytest.fixture
def short_cascades():
    """AutoAttack's parts take 8 steps instead of 100."""
    with pytest.MonkeyPatch.context() as patch:
        for cls in (AutoAttack, EnsembleAutoAttack):

            def few(self, n_members=1, attacks=cls.attacks):
                made = attacks(self, n_members)
                return [a.set_params(n_steps=8) if hasattr(a, "n_steps") else a for a in made]

            patch.setattr(cls, "attacks", few)
        yield
