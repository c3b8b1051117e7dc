"""The attack of Carlini and Wagner in L2."""

from robust_ensembles.attacks import CarliniWagnerL2, is_broken


def test_carlini_wagner_lowers_a_weight_that_is_too_large(problem):
    module, x, y = problem
    lengths = []
    for n_searches in (1, 6):
        attack = CarliniWagnerL2(n_steps=60, n_searches=n_searches, lr=0.1, initial_const=1000.0)
        found = attack(module, x, y, stop_when_broken=False)
        assert is_broken(module, found, y).all()
        lengths.append((found - x).norm(dim=1))
    assert lengths[1].mean() < 0.999 * lengths[0].mean()
