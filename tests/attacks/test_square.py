"""Square: its patches, its schedule, and how many outputs it looks at."""

import pytest
import torch
from small_models import ensemble, uniform

from robust_ensembles.attacks import Square, is_broken
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.attacks.engine.noise import sample_keys
from robust_ensembles.attacks.square import PROPOSALS


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 5, 9), (2, 12), (18,)])
def test_shapes(norm, shape):
    """Images, several channels, sequences and rows of features."""
    n_features = torch.Size(shape).numel()
    module = torch.nn.Sequential(torch.nn.Flatten(), ensemble(n_features)[0])
    x = uniform(10, *shape, seed=4)
    y = module(x).argmax(dim=1)
    eps = 0.25 if norm == "linf" else 1.0
    attack = Square(eps=eps, norm=norm, n_queries=60, clip_values=(0, 1))
    found = attack(module, x, y)
    broken = is_broken(module, found, y)
    assert broken.sum() >= 2
    assert found.min() >= 0
    assert found.max() <= 1


def test_patches_shrink_on_the_schedule_of_the_paper():
    """Halved after 10, 50, 200, 500, ... of 10,000 queries, in proportion for others."""
    attack = Square(n_queries=5000, p_init=0.8)
    parts = [attack.part(query) for query in (0, 5, 6, 25, 26, 100, 101, 4001)]
    assert parts == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.8 / 512]


def test_signs_are_drawn_for_each_sample_and_channel():
    x = torch.zeros(60, 2, 6, 6).double()
    proposal = PROPOSALS["linf"](LinfBall(x, 0.1, None), 0.1)
    index, keys = (
        torch.arange(60),
        sample_keys(x + torch.arange(60).view(60, 1, 1, 1), 0),
    )  # each its own
    changed = proposal.change(index, x, 0.25, keys)
    square = changed != 0
    assert (square.sum(dim=(2, 3)) == 9).all()
    assert (square[:, 0] == square[:, 1]).all()  # one place for all channels
    assert len(square[:, 0].flatten(1).int().unique(dim=0)) > 8
    signs = changed.flatten(2).sum(dim=2).sign()
    assert set(map(tuple, signs.int().tolist())) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_counts_queries(problem):
    """The count of a sample is the number of outputs that were looked at for it."""
    module, x, y = problem
    attack = Square(eps=0.2, n_queries=30)
    x_adv, n_queries = attack.count_queries(module, x, y)
    assert torch.equal(x_adv, attack(module, x, y))
    broken, already = is_broken(module, x_adv, y), is_broken(module, x, y)
    assert (n_queries[already] == 1).all()
    assert (n_queries[~broken] == 32).all()
    rest = n_queries[broken & ~already]
    assert rest.min() >= 2
    assert rest.max() <= 32
    assert len(rest.unique()) > 2
