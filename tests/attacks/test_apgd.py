"""APGD's details, Square's queries, and what AutoAttack is made of."""

import pytest
import torch
from small_models import ensemble, labelled, linear, random, uniform

from robust_ensembles.attacks import (
    APGD,
    FAB,
    MORA,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    EnsembleAutoAttack,
    Square,
    TargetedAPGD,
    WorstCase,
    is_broken,
)
from robust_ensembles.attacks.apgd import End, WalkState, _checkpoints, adapt_sparsity
from robust_ensembles.attacks.engine.ascent import Evaluation
from robust_ensembles.attacks.engine.balls import L1Ball, LinfBall
from robust_ensembles.attacks.engine.noise import sample_keys
from robust_ensembles.attacks.minimum_norm import project_onto_hyperplane
from robust_ensembles.attacks.square import PROPOSALS


@pytest.fixture(scope="module")
def problem():
    module = ensemble()
    x, y = labelled(module, 24)
    y[::7] = (y[::7] + 1) % 3
    return module, x, y


class TestAPGD:
    def test_checkpoints_of_the_paper(self):
        """p_1 = 0.22, then intervals shorter by 0.03, at least 0.06, of 100 steps."""
        assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
        assert all(step >= 1 for n in (1, 2, 5, 10) for step in _checkpoints(n))

    def test_step_size_is_halved_on_the_way_to_a_maximum_inside(self):
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
    def test_a_walk_ends_at_its_best_point(self, broken):
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
    def test_momentum_by_hand(self, step):
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

    def test_returns_the_best_point_not_the_last(self, problem):
        module, x, y = problem
        attack = APGD(eps=0.05, n_steps=25, loss="cross_entropy")
        found = attack(module, x, y, stop_when_broken=False)
        last = PGD(eps=0.05, n_steps=25, step_size=0.1, loss="cross_entropy")(
            module, x, y, stop_when_broken=False
        )
        loss, other = (-module(z).gather(1, y[:, None]) for z in (found, last))
        assert (loss >= other - 1e-9).double().mean() > 0.9
        assert (loss > other + 1e-4).any()

    @pytest.mark.parametrize("loss", ["margin", "dlr", "member_cross_entropy", "cross_entropy"])
    def test_more_restarts_break_more(self, problem, loss):
        """What one walk breaks stays broken, however high the loss of the next."""
        module, x, y = problem
        masks = [
            is_broken(module, APGD(eps=0.13, n_steps=4, n_restarts=n, loss=loss)(module, x, y), y)
            for n in (1, 2, 6)
        ]
        assert (masks[1] | ~masks[0]).all()
        assert (masks[2] | ~masks[1]).all()
        assert masks[2].sum() >= masks[0].sum()

    def test_averages_gradients_of_a_random_module(self):
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

    @pytest.mark.parametrize(
        ("attack", "message"),
        [
            (APGD(n_steps=0), "APGD: n_steps must be at least 1"),
            (APGD(n_restarts=0), "APGD: n_restarts must be at least 1"),
            (APGD(n_gradients=0), "APGD: n_gradients must be at least 1"),
            (APGD(rho=0.0), "rho must be above 0 and at most 1"),
            (TargetedAPGD(n_target_classes=0), "n_target_classes must be at least 1"),
            (TargetedAPGD(targeted=True), "TargetedAPGD is untargeted"),
            (FAB(n_steps=0), "FAB: n_steps must be at least 1"),
            (FAB(targeted=True), "FAB is untargeted"),
            (Square(n_queries=0), "n_queries must be at least 1"),
            (Square(p_init=0), "p_init must be above 0 and at most 1"),
            (AutoAttack(version="fast"), "AutoAttack: version must be one of"),
            (AutoAttack(eps=-1), "APGD: eps must be"),
        ],
    )
    def test_bad_input(self, problem, attack, message):
        with pytest.raises(ValueError, match=message):
            attack(*problem)


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
        for seed in range(300):
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


def index_of_sample(x):
    """Makes equal samples differ."""
    return torch.arange(len(x)).view(-1, *([1] * (x.ndim - 1)))


class TestSquare:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("shape", [(3, 6, 6), (1, 5, 9), (2, 12), (18,)])
    def test_shapes(self, norm, shape):
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

    def test_patches_shrink_on_the_schedule_of_the_paper(self):
        """Halved after 10, 50, 200, 500, ... of 10,000 queries, in proportion for others."""
        attack = Square(n_queries=5000, p_init=0.8)
        parts = [attack.part(query) for query in (0, 5, 6, 25, 26, 100, 101, 4001)]
        assert parts == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.8 / 512]

    def test_signs_are_drawn_for_each_sample_and_channel(self):
        x = torch.zeros(60, 2, 6, 6).double()
        proposal = PROPOSALS["linf"](LinfBall(x, 0.1, None), 0.1)
        index, keys = torch.arange(60), sample_keys(x + index_of_sample(x), 0)
        changed = proposal.change(index, x, 0.25, keys)
        square = changed != 0
        assert (square.sum(dim=(2, 3)) == 9).all()
        assert (square[:, 0] == square[:, 1]).all()  # one place for all channels
        assert len(square[:, 0].flatten(1).int().unique(dim=0)) > 8
        signs = changed.flatten(2).sum(dim=2).sign()
        assert set(map(tuple, signs.int().tolist())) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}

    def test_needs_no_gradient(self):
        class Steps(torch.nn.Module):
            @torch.no_grad()
            def forward(self, x):
                z = x.mean(dim=1)
                return torch.stack([z.round(decimals=1), 1 - z.round(decimals=1)], dim=1)

        x = uniform(30, 8, seed=3)
        y = Steps()(x).argmax(dim=1)
        assert Square().gradient_free
        found = Square(eps=0.2, n_queries=50)(Steps(), x, y)
        assert is_broken(Steps(), found, y).sum() > 5

    def test_counts_queries(self, problem):
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


class TestAutoAttack:
    @pytest.mark.parametrize("version", ["standard", "plus", "rand"])
    def test_is_the_worst_case_of_its_parts(self, problem, version):
        module, x, y = problem
        x, y = x[:8], y[:8]
        attack = AutoAttack(eps=0.12, version=version, n_queries=5)
        found = is_broken(module, attack(module, x, y), y)
        expected = is_broken(module, WorstCase(attack.attacks())(module, x, y), y)
        assert torch.equal(found, expected)

    def test_parts_of_the_standard(self):
        shared = {"eps": 0.1, "norm": "l2", "random_state": 3, "batch_size": 7}
        apgd, targeted, fab, square = AutoAttack(**shared).attacks()
        assert [type(a) for a in (apgd, targeted, fab, square)] == [
            APGD,
            TargetedAPGD,
            FAB,
            Square,
        ]
        for part in (apgd, targeted, fab, square):
            assert {name: getattr(part, name) for name in shared} == shared
        assert (apgd.n_steps, targeted.n_steps, fab.n_steps) == (100, 100, 100)
        assert (targeted.n_target_classes, fab.n_target_classes) == (9, 9)
        assert (apgd.n_restarts, square.n_queries) == (1, 5000)

    def test_ensemble_version_attacks_every_rule(self, problem):
        module, x, y = problem
        attack = EnsembleAutoAttack(eps=0.12, n_queries=5)
        parts = attack.attacks(3)
        rules = [(p.loss, p.aggregation) for p in parts if type(p) is APGD]
        assert rules == [
            ("margin", "mean_proba"),
            ("margin", "mean_logits"),
            ("member_margin", "mean_proba"),
            ("margin", 0),
            ("margin", 1),
            ("margin", 2),
        ]
        assert sum(isinstance(p, MORA) for p in parts) == 1
        assert [type(p) for p in parts[-3:]] == [TargetedAPGD, FAB, Square]
        found = is_broken(module, attack(module, x[:8], y[:8]), y[:8])
        worst = is_broken(module, WorstCase(parts)(module, x[:8], y[:8]), y[:8])
        assert torch.equal(found, worst)

    def test_ensemble_version_of_a_plain_module(self, problem):
        module, x, _ = problem
        member, labels = module[0], module[0](x).argmax(dim=1)
        kinds = [type(p) for p in EnsembleAutoAttack().attacks(1)]
        assert kinds == [APGD, TargetedAPGD, FAB, Square]
        attack = EnsembleAutoAttack(eps=0.2, n_queries=5)
        found = attack(member, x[:5], labels[:5])
        expected = AutoAttack(eps=0.2, n_queries=5)(member, x[:5], labels[:5])
        assert torch.equal(found, expected)

    def test_not_for_training_examples(self, problem):
        with pytest.raises(ValueError, match="looks at every decision"):
            AutoAttack()(*problem, stop_when_broken=False)


@pytest.mark.parametrize("attack", [APGD, TargetedAPGD, MORA, FAB, Square])
def test_double_precision_through_a_single_precision_module(attack):
    """As float64 X of a Pipeline meets a float32 network."""

    class Single(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = ensemble(dtype=torch.float32)

        def forward(self, x):
            return self.module(x.float())

        def member_logits(self, x):
            return self.module.member_logits(x.float())

    x, y = labelled(Single(), 12)
    count = {"n_queries": 10} if attack is Square else {"n_steps": 10}
    found = attack(eps=0.2, **count)(Single(), x, y)
    assert found.dtype == torch.float64
    assert is_broken(Single(), found, y).any()


def test_carlini_wagner_lowers_a_weight_that_is_too_large(problem):
    module, x, y = problem
    lengths = []
    for n_searches in (1, 6):
        attack = CarliniWagnerL2(n_steps=60, n_searches=n_searches, lr=0.1, initial_const=1000.0)
        found = attack(module, x, y, stop_when_broken=False)
        assert is_broken(module, found, y).all()
        lengths.append((found - x).norm(dim=1))
    assert lengths[1].mean() < 0.999 * lengths[0].mean()
