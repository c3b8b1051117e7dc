"""MORA: members reweighed by who is still right."""

import torch
from small_models import ensemble, labelled

from robust_ensembles.attacks import MORA, PGD, is_broken
from robust_ensembles.attacks.apgd import WalkState
from robust_ensembles.attacks.engine.ascent import Evaluation
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.attacks.mora import ReweighedMembers


def test_steps_shrink_to_nothing():
    ball = LinfBall(torch.zeros(2, 3).double(), 0.1, None)
    zero = torch.zeros(2).double()
    at = Evaluation(zero, torch.zeros(2, 3).double(), torch.zeros(2, dtype=torch.bool))
    state = WalkState.at(ball, ball.x, at)
    sizes = [MORA(eps=0.1)._adapt(ball, state, step, 10).step_size for step in (0, 1, 5, 10)]
    expected = torch.tensor([0.2, 0.18, 0.1, 0.0]).double()[:, None].expand(4, 2)
    torch.testing.assert_close(torch.stack(sizes), expected)


def test_broken_members_do_not_count():
    """With share 1 only members that are still right drive the walk."""
    module = ensemble()
    x, y = labelled(module, 40)
    logits = module.member_logits(x).detach()
    right = logits.argmax(dim=-1) == y
    some = (right.sum(dim=0) < 3) & (right.sum(dim=0) > 0)
    assert some.sum() > 3
    leaf = logits.clone().requires_grad_()
    objective = ReweighedMembers(module, share=1.0)
    (gradient,) = torch.autograd.grad(objective._value(leaf, y).sum(), leaf)
    assert gradient[~right].abs().max() == 0
    assert (gradient[right].abs().amax(dim=-1) > 0).all()


def test_share_zero_is_the_mean_of_the_logits_on_one_scale():
    module = ensemble()
    x, y = labelled(module)
    logits = module.member_logits(x).detach()
    found = ReweighedMembers(module, share=0.0)._value(logits, y)
    again = ReweighedMembers(module, share=0.0)._value(100 * logits, y)
    torch.testing.assert_close(found, again, rtol=1e-9, atol=1e-9)


def test_confident_members_cannot_hide():
    """Two members whose gradients cancel in the mean, and a boundary that is near."""
    confident = ensemble(seed=4)
    with torch.no_grad():
        for member in confident:
            member[2].weight.mul_(40)
    x, y = labelled(confident, 60)
    x, y = x.float(), y
    confident.float()
    attack = {"eps": 0.12, "n_steps": 20}
    mora = is_broken(confident, MORA(**attack)(confident, x, y), y)
    plain = PGD(loss="cross_entropy", **attack)(confident, x, y)
    assert mora.sum() > is_broken(confident, plain, y).sum()
