"""FAB, and what it shares with the other attacks that look for the nearest example."""

import pytest
import torch
from small_models import ensemble, labelled, random, uniform

from robust_ensembles.attacks import FAB, fab, is_broken
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.attacks.minimum_norm import Nearest, project_onto_hyperplane


class TestHyperplane:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("box", [None, (0.0, 1.0)])
    def test_reaches_it_by_the_shortest_way(self, norm, box):
        """Against random feasible steps, which are never shorter."""
        x, w = uniform(6, 8, seed=1), random(6, 8, seed=2)
        gap = 0.3 * random(6, seed=3)
        delta = project_onto_hyperplane(x, w, gap, norm=norm, box=box)
        torch.testing.assert_close((w * delta).sum(dim=1), gap, rtol=0, atol=1e-9)
        if box is not None:
            assert (x + delta).min() >= 0
            assert (x + delta).max() <= 1
        length = delta.norm(p=float("inf") if norm == "linf" else 2, dim=1)
        for seed in range(100):
            other = delta + 0.05 * random(6, 8, seed=10 + seed)
            # back onto the hyperplane, through the coordinates
            other = other + w * ((gap - (w * other).sum(dim=1)) / w.square().sum(dim=1))[:, None]
            inside = torch.ones(6, dtype=torch.bool)
            if box is not None:
                inside = ((x + other >= 0) & (x + other <= 1)).all(dim=1)
            longer = other.norm(p=float("inf") if norm == "linf" else 2, dim=1) >= length - 1e-9
            assert (longer | ~inside).all()

    def test_out_of_reach_uses_all_the_room(self):
        x, w = torch.tensor([[0.2, 0.9]]).double(), torch.tensor([[1.0, -2.0]]).double()
        delta = project_onto_hyperplane(x, w, torch.tensor([100.0]), norm="linf", box=(0.0, 1.0))
        torch.testing.assert_close(x + delta, torch.tensor([[1.0, 0.0]]).double())

    def test_no_gradient_is_no_step(self):
        x = uniform(2, 3)
        delta = project_onto_hyperplane(x, 0 * x, torch.ones(2).double(), norm="l2", box=None)
        assert torch.equal(delta, 0 * x)


def test_several_offers_for_a_sample():
    ball = LinfBall(torch.zeros(3, 2), 1.0, None)
    nearest = Nearest(ball, enough=0.0)
    index = torch.tensor([0, 0, 0, 1, 0, 2])
    x = torch.tensor([[0.5, 0], [0.3, 0], [0.4, 0], [0.2, 0], [0.1, 0], [0.9, 0.0]])
    broken = torch.tensor([True, True, True, True, False, False])
    nearest.offer(index, x, broken)
    assert nearest.x[:, 0].tolist() == pytest.approx([0.3, 0.2, 0.0])
    assert nearest.distance.tolist() == pytest.approx([0.3, 0.2, float("inf")])


@pytest.mark.parametrize("n_restarts", [1, 2])
def test_side_by_side_or_one_walk_after_the_other(n_restarts, monkeypatch):
    module = ensemble(n_features=6, n_classes=6)
    rows = module, *labelled(module, 25)
    attack = FAB(eps=0.04, n_steps=8, n_restarts=n_restarts)
    broken, nearest = [], []
    for width in (64, 1):
        monkeypatch.setattr(fab, "SIDE_BY_SIDE", width)
        broken.append(is_broken(rows[0], attack(*rows), rows[2]))
        nearest.append(attack(*rows, stop_when_broken=False))
    assert torch.equal(*broken)
    assert broken[0].any()
    assert not broken[0].all()
    torch.testing.assert_close(*nearest, rtol=0, atol=1e-9)
