"""A sample's result depends on the sample alone."""

import pytest
import torch
from small_models import ensemble, labelled, uniform, with_the_others

from robust_ensembles.attacks import (
    APGD,
    BIM,
    CW,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    CarliniWagnerL2,
    DeepFool,
    External,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
    WorstCase,
    is_broken,
)
from robust_ensembles.attacks.engine.balls import NORMS

ATTACKS = {
    "fgsm": FGSM(eps=0.2),
    "bim": BIM(eps=0.2),
    "mim": MIM(eps=0.2),
    "pgd": PGD(eps=0.2, n_steps=7),
    "pgd-l2": PGD(eps=0.4, norm="l2", n_steps=7),
    "mim-l2": MIM(eps=0.4, norm="l2"),
    "pgd-restarts": PGD(eps=0.15, n_steps=3, n_restarts=3),
    "cw": CW(eps=0.2, n_steps=7),
    "noise": UniformNoise(eps=0.3),
    "worst": WorstCase([FGSM(eps=0.15), PGD(eps=0.2, n_steps=5)]),
    "apgd": APGD(eps=0.2, n_steps=10, n_restarts=2),
    "apgd-l2": APGD(eps=0.4, norm="l2", loss="dlr", n_steps=10),
    "apgd-l1": APGD(eps=0.6, norm="l1", n_steps=30),
    "apgd-one-member": APGD(eps=0.3, n_steps=10, aggregation=1),
    "apgd-targeted": TargetedAPGD(eps=0.2, n_steps=10),
    "mora": MORA(eps=0.2, n_steps=10),
    "fab": FAB(eps=0.2, n_steps=10, n_restarts=2),
    "fab-l2": FAB(eps=0.4, norm="l2", n_steps=10),
    "deepfool": DeepFool(eps=0.2, n_steps=10),
    "deepfool-l2": DeepFool(eps=0.4, norm="l2", n_steps=10),
    "carlini-wagner": CarliniWagnerL2(eps=0.4, n_steps=25, n_searches=3, lr=0.05, initial_const=1),
    "square": Square(eps=0.2, n_queries=40),
    "square-l2": Square(eps=0.45, norm="l2", n_queries=40),
    "transfer": Transfer([ensemble(seed=1), ensemble(seed=2)], PGD(eps=0.3, n_steps=5)),
    "external": External(function=lambda module, x, y: x + 0.3 * x.sin().sign(), eps=0.3),
}
ATTACKS = with_the_others(ATTACKS, eps=0.2)


@pytest.fixture(scope="module")
def problem():
    module = ensemble()
    x, y = labelled(module, 23)
    y[::5] = (y[::5] + 1) % 3  # some are wrong from the start
    return module, x, y


@pytest.mark.parametrize("name", ATTACKS)
class TestBatches:
    def test_some_break_and_some_do_not(self, name, problem):
        """So that the other tests see samples leave."""
        module, x, y = problem
        broken = is_broken(module, ATTACKS[name](module, x, y), y)
        assert broken[is_broken(module, x, y)].all()
        assert 5 < broken.sum() < 23

    @pytest.mark.parametrize("batch_size", [1, 2, 7, 22])
    def test_batch_size(self, name, problem, batch_size):
        module, x, y = problem
        attack = ATTACKS[name]
        parts = [
            attack(module, a, b)
            for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), attack(module, x, y), rtol=0, atol=1e-5)

    def test_order_and_subset(self, name, problem):
        module, x, y = problem
        order = torch.tensor([20, 3, 11, 0, 7, 8, 22, 5])
        expected = ATTACKS[name](module, x, y)[order]
        found = ATTACKS[name](module, x[order], y[order])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_memory_layout_and_graph(self, name, problem):
        module, x, y = problem
        strided = x.T.contiguous().T.requires_grad_()
        found = ATTACKS[name](module, strided, y)
        assert not found.requires_grad
        torch.testing.assert_close(found, ATTACKS[name](module, x, y), rtol=0, atol=1e-5)

    def test_repeats_itself_and_leaves_x(self, name, problem):
        module, x, y = problem
        before = x.clone()
        first = ATTACKS[name](module, x, y)
        assert torch.equal(ATTACKS[name](module, x, y), first)
        assert torch.equal(x, before)

    def test_no_samples(self, name, problem):
        module, x, y = problem
        found = ATTACKS[name](module, x[:0], y[:0])
        assert found.shape == (0, 6)
        assert found.dtype == x.dtype
        assert is_broken(module, found, y[:0]).shape == (0,)


def test_batch_size_parameter(problem):
    module, x, y = problem
    for attack in (PGD, MIM, UniformNoise):
        one, all_ = (attack(eps=0.2, batch_size=size)(module, x, y) for size in (1, 256))
        torch.testing.assert_close(one, all_, rtol=0, atol=1e-5)
    one = is_broken(module, x, y, batch_size=4)
    assert torch.equal(one, is_broken(module, x, y))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_belongs_to_the_sample(norm, dtype):
    x = uniform(8, 2, 3, dtype=dtype)
    points = NORMS[norm](x, 0.1, None).random_point(7)
    order = torch.tensor([5, 1, 1, 6])
    assert torch.equal(NORMS[norm](x[order], 0.1, None).random_point(7), points[order])
    assert not torch.equal(NORMS[norm](x, 0.1, None).random_point(8), points)
    noise = (points - x).flatten(1)
    assert len(noise.unique(dim=0)) == 8  # each its own
    reversed_features = x.flip(2)
    other = NORMS[norm](reversed_features, 0.1, None).random_point(7) - reversed_features
    assert not torch.allclose(other.flatten(1).sort().values, noise.sort().values)


def test_seeds(problem):
    module, x, y = problem
    results = [
        PGD(eps=0.05, n_steps=1, random_state=seed)(module, x, y, stop_when_broken=False)
        for seed in (0, 0, 1, -1, None, None)
    ]
    assert torch.equal(results[0], results[1])
    for i in range(1, 6):
        for j in range(i + 1, 6):
            assert not torch.equal(results[i], results[j])
