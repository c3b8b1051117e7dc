"""APGD: its steps, its memory of the best point, restarts, sparse steps, and its targeted form."""

import pytest
import torch
from small_models import ensemble, labelled, linear

from robust_ensembles.attacks import APGD, MORA, PGD, TargetedAPGD, apgd, is_broken
from robust_ensembles.attacks.apgd import End, WalkState, adapt_sparsity
from robust_ensembles.attacks.engine.ascent import Evaluation, Objective, TowardsClass
from robust_ensembles.attacks.engine.balls import L1Ball, LinfBall
from robust_ensembles.attacks.engine.margins import difference


def test_checkpoints_of_the_paper():
    """p_1 = 0.22, then intervals shorter by 0.03, at least 0.06, of 100 steps."""
    assert list(apgd._checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert all(step >= 1 for n in (1, 2, 5, 10) for step in apgd._checkpoints(n))


def test_step_size_is_halved_on_the_way_to_a_maximum_inside():
    """A concave loss with its top inside the ball: a fixed step cannot come near it."""

    class Bowl(torch.nn.Module):
        def forward(self, x):
            top = torch.full_like(x, 0.05)
            loss = -(x - top).square().sum(dim=1)
            return torch.stack([-loss, torch.zeros_like(loss)], dim=1)

    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    found = APGD(eps=0.3, n_steps=100)(Bowl(), x, y, stop_when_broken=False)
    assert (found - 0.05).abs().max() < 3e-3
    fixed = PGD(eps=0.3, step_size=0.15, n_steps=100)(Bowl(), x, y, stop_when_broken=False)
    assert (fixed - 0.05).abs().max() > 1e-2


@pytest.mark.parametrize("broken", [False, True])
def test_a_walk_ends_at_its_best_point(broken):
    """Unless it is broken where it stands, which counts for more than the loss."""
    start, end = torch.zeros(1, 3).double(), torch.ones(1, 3).double()
    ball, gradient = LinfBall(start, 1.0, None), torch.ones(1, 3).double()
    high, low = torch.tensor([2.0]).double(), torch.tensor([1.0]).double()
    state = WalkState.at(ball, start, Evaluation(high, gradient, torch.tensor([False])))
    state = state.moved(end, Evaluation(low, gradient, torch.tensor([broken])))
    kept = End.of(state)
    kept.put(torch.tensor([0]), state)
    assert torch.equal(kept.x, end if broken else start)
    assert float(kept.loss) == 2.0
    assert bool(kept.broken) == broken


@pytest.mark.parametrize("step", [0, 1])
def test_momentum_by_hand(step):
    """A quarter of a step is the step before; the first has none before it."""
    origin = torch.zeros(1, 3).double()
    ball = LinfBall(origin, 1.0, None)
    gradient = torch.tensor([[2.0, -1.0, 0.0]]).double()
    evaluation = Evaluation(torch.zeros(1).double(), gradient, torch.tensor([False]))
    state = WalkState.at(ball, origin, evaluation)
    state.step_size[:] = 0.4
    state.x_before = torch.tensor([[-0.2, 0.0, 0.2]]).double()
    part = 0.75 if step else 1.0
    ahead = torch.tensor([[0.4, -0.4, 0.0]]).double()
    expected = part * ahead + (1 - part) * (origin - state.x_before)
    torch.testing.assert_close(APGD()._next_point(ball, state, step), expected)


def test_returns_the_best_point_not_the_last(problem):
    module, x, y = problem
    attack = APGD(eps=0.05, n_steps=25, loss="cross_entropy")
    found = attack(module, x, y, stop_when_broken=False)
    last = PGD(eps=0.05, n_steps=25, step_size=0.1, loss="cross_entropy")(
        module, x, y, stop_when_broken=False
    )
    loss, other = (-module(z).gather(1, y[:, None]) for z in (found, last))
    assert (loss >= other - 1e-9).double().mean() > 0.9
    assert (loss > other + 1e-4).any()


def test_averages_gradients_of_a_random_module():
    """One noisy gradient points anywhere; the mean of many finds the way."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)
            self.layer = linear(torch.stack([torch.zeros(50), torch.ones(50)], dim=1).double())

        def forward(self, x):
            noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
            return self.layer(x * (1 + 20 * noise))

    x, y = torch.full((40, 50), 0.1, dtype=torch.float64), torch.ones(40, dtype=torch.long)
    ends = []
    for n in (1, 30):
        attack = APGD(eps=0.1, n_steps=10, n_gradients=n, loss="cw_margin")
        ends.append(float(attack(Noisy(), x, y, stop_when_broken=False).mean()))
    assert ends[1] < ends[0] - 0.01


def test_steps_and_sparsity_in_l1_by_hand():
    """Fewer coordinates: full steps from the best point. As many: shorter steps, to a tenth."""
    ball = L1Ball(torch.zeros(1, 4).double(), 0.6, None)
    best, there = torch.tensor([[0.5, 0, 0, 0]]).double(), torch.full((1, 4), 0.1).double()
    low, high = torch.tensor([1.0]).double(), torch.tensor([2.0]).double()
    unbroken, gradient = torch.tensor([False]), torch.ones(1, 4).double()
    state = WalkState.at(ball, best, Evaluation(high, gradient, unbroken))
    state = state.moved(there, Evaluation(low, gradient, unbroken))
    state.n_moved[:] = 4
    state.step_size[:] = 0.3
    assert adapt_sparsity(ball, state, step=3, n_steps=100) is state  # a look after each four
    sparser = adapt_sparsity(ball, state, step=4, n_steps=100)
    assert torch.equal(sparser.x, best)
    assert (float(sparser.step_size), float(sparser.n_moved)) == (0.6, 1)
    again = adapt_sparsity(ball, sparser.moved(there, Evaluation(low, gradient, unbroken)), 8, 100)
    assert torch.equal(again.x, there)
    assert float(again.step_size) == pytest.approx(0.4)
    for step in range(12, 60, 4):
        again = adapt_sparsity(ball, again, step, 100)
    assert float(again.step_size) == pytest.approx(0.06)


def test_any_wrong_decision_counts_on_the_way_to_a_class():
    objective = Objective(torch.nn.Identity(), "margin")
    towards = TowardsClass(objective, difference)
    logits = torch.eye(3).double()
    labels = torch.tensor([[0, 2], [0, 2], [0, 2]])
    assert towards.broken(logits, labels).tolist() == [False, True, True]
    at = towards.evaluate(logits, labels)
    assert at.broken.tolist() == [False, True, True]
    assert at.loss.tolist() == [-1, 0, 1]


@pytest.fixture
def crowded():
    module = ensemble(n_features=6, n_classes=6)
    x, y = labelled(module, 40)
    return module, x, y


@pytest.mark.parametrize(
    "attack",
    [
        TargetedAPGD(eps=0.04, n_steps=15, n_restarts=2),
        APGD(eps=0.03, n_steps=1, n_restarts=6),
        APGD(eps=0.04, n_steps=15, n_restarts=4),
        APGD(eps=0.2, norm="l1", n_steps=30, n_restarts=3),
        MORA(eps=0.04, n_steps=8),
    ],
)
@pytest.mark.parametrize("stop_when_broken", [True, False])
def test_side_by_side_or_one_walk_after_the_other(attack, stop_when_broken, crowded, monkeypatch):
    found = attack(*crowded, stop_when_broken=stop_when_broken)
    monkeypatch.setattr(apgd, "SIDE_BY_SIDE", 1)
    expected = attack(*crowded, stop_when_broken=stop_when_broken)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    broken = is_broken(crowded[0], expected, crowded[2])
    assert broken.any()
    assert not broken.all()
