"""The walks, step by step, against loops written from the papers."""

import pytest
import torch
from small_models import ensemble, labelled, random

from robust_ensembles.attacks import BIM, CW, FGSM, MIM, PGD, is_broken
from robust_ensembles.attacks.engine.balls import NORMS

EPS, STEP = 1 / 16, 1 / 64  # sums of these with a coarse grid are exact


@pytest.fixture(scope="module")
def problem():
    module = ensemble()
    x, y = labelled(module, 30)
    return module, (x * 1024).round() / 1024, y


def loss_gradient(module, x, y, *, targeted=False):
    """Of -log pbar_y, from probabilities."""
    x = x.clone().requires_grad_()
    pbar = module.member_logits(x).softmax(dim=-1).mean(dim=0)
    loss = -pbar[torch.arange(len(y)), y].log().sum()
    (gradient,) = torch.autograd.grad(-loss if targeted else loss, x)
    return gradient


def clip(x, low, high):
    return torch.min(torch.max(x, low), high)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_takes_every_step(problem, random_start, loss, targeted):
    module, x, y = problem
    attack = PGD(
        eps=EPS,
        step_size=STEP,
        n_steps=9,
        loss=loss,
        targeted=targeted,
        random_start=random_start,
        random_state=3,
        clip_values=(0, 1),
    )
    walk = NORMS["linf"](x, EPS, (0, 1)).random_point(3) if random_start else x
    for _ in range(9):
        walk = walk + STEP * loss_gradient(module, walk, y, targeted=targeted).sign()
        walk = clip(walk, x - EPS, x + EPS).clamp(0, 1)
    assert torch.equal(attack(module, x, y, stop_when_broken=False), walk)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_mim(problem, decay):
    module, x, y = problem
    walk, momentum = x, torch.zeros_like(x)
    for _ in range(10):
        gradient = loss_gradient(module, walk, y)
        momentum = decay * momentum + gradient / gradient.abs().sum(dim=1, keepdim=True)
        walk = clip(walk + STEP * momentum.sign(), x - EPS, x + EPS).clamp(0, 1)
    attack = MIM(eps=EPS, step_size=STEP, decay=decay, loss="cross_entropy", clip_values=(0, 1))
    assert torch.equal(attack(module, x, y, stop_when_broken=False), walk)


def test_mim_without_memory_is_bim(problem):
    bim, none, some = (
        attack(*problem, stop_when_broken=False)
        for attack in (BIM(eps=0.5), MIM(eps=0.5, decay=0.0), MIM(eps=0.5))
    )
    assert torch.equal(bim, none)
    assert not torch.equal(bim, some)
    assert MIM().decay == 1


def project_by_bisection(x, delta, eps):
    """The nearest point of ball and unit box: delta shrunk until it fits, once clipped."""
    low, high = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    for _ in range(60):
        middle = (low + high) / 2
        fits = ((x + middle * delta).clamp(0, 1) - x).norm(dim=1, keepdim=True) <= eps
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return (x + low * delta).clamp(0, 1)


def test_pgd_l2(problem):
    module, x, y = problem
    walk = x
    for _ in range(8):
        gradient = loss_gradient(module, walk, y)
        delta = walk + 0.1 * gradient / gradient.norm(dim=1, keepdim=True) - x
        walk = project_by_bisection(x, delta, 0.25)
    attack = PGD(eps=0.25, norm="l2", step_size=0.1, n_steps=8, random_start=False)
    attack.set_params(loss="cross_entropy", clip_values=(0, 1))
    found = attack(module, x, y, stop_when_broken=False)
    torch.testing.assert_close(found, walk, rtol=0, atol=1e-12)


def test_fgsm_formula(problem):
    module, x, y = problem
    expected = (x + EPS * loss_gradient(module, x, y).sign()).clamp(0, 1)
    found = FGSM(eps=EPS, clip_values=(0, 1))(module, x, y, stop_when_broken=False)
    assert torch.equal(found, expected)
    boxless = FGSM(eps=EPS)(module, x, y, stop_when_broken=False)
    assert torch.equal(boxless, x + EPS * loss_gradient(module, x, y).sign())


@pytest.mark.parametrize(
    ("attack", "n_steps", "fraction"),
    [(FGSM, 1, 1.0), (BIM, 10, 1 / 5), (MIM, 10, 1 / 5), (PGD, 20, 1 / 4), (CW, 20, 1 / 4)],
)
def test_default_steps(problem, attack, n_steps, fraction):
    module, x, y = problem
    spelled_out = attack(eps=0.1, n_steps=n_steps, step_size=0.1 * fraction)
    expected = spelled_out(module, x, y, stop_when_broken=False)
    assert torch.equal(attack(eps=0.1)(module, x, y, stop_when_broken=False), expected)
    other = attack(eps=0.1, n_steps=n_steps, step_size=0.03)(module, x, y, stop_when_broken=False)
    assert not torch.equal(other, expected)


def test_stopping_returns_the_first_broken_iterate(problem):
    module, x, y = problem
    walks = [
        PGD(eps=0.3, step_size=0.05, n_steps=n, random_start=False)(
            module, x, y, stop_when_broken=False
        )
        for n in range(1, 11)
    ]
    expected = walks[-1].clone()
    for walk in reversed(walks):
        broken = is_broken(module, walk, y)
        expected[broken] = walk[broken]
    found = PGD(eps=0.3, step_size=0.05, n_steps=10, random_start=False)(module, x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(found, walks[-1])


def test_targeted_reaches_its_class(problem):
    module, x, y = problem
    assert torch.equal(PGD(eps=0.2, targeted=True)(module, x, y), x)  # which is there already
    target = (y + 1) % 3
    for attack in (BIM, MIM, PGD, CW):
        x_adv = attack(eps=1.0, targeted=True)(module, x, target)
        reached = is_broken(module, x_adv, target, targeted=True)
        assert torch.equal(reached, module(x_adv).argmax(dim=1) == target)
        assert reached.double().mean() > 0.7
        untargeted = attack(eps=1.0)(module, x, y)
        assert reached.sum() > is_broken(module, untargeted, target, targeted=True).sum()


def test_craft_takes_all_steps_from_its_own_seed(problem):
    module, x, y = problem
    attack = PGD(eps=EPS, random_state=3)
    whole = attack(module, x, y, stop_when_broken=False)
    assert torch.equal(attack.craft(module, x, y, box=None, seed=3), whole)
    assert not torch.equal(attack.craft(module, x, y, box=None, seed=4), whole)
    boxed = attack.craft(module, x, y, box=(0.25, 0.75), seed=3)
    assert boxed.min() == 0.25
    assert boxed.max() == 0.75


def test_zero_gradient_stays_where_it_is():
    x, y = random(4, 6), torch.zeros(4, dtype=torch.long)

    class Constant(torch.nn.Module):
        def forward(self, x):
            return 0 * x[:, :2] + torch.tensor([1.0, 0.0])

    for attack in (FGSM(), BIM(), MIM(), MIM(norm="l2"), BIM(norm="l2")):
        assert torch.equal(attack(Constant(), x, y), x)
