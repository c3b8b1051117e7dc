"""Results lie in the ball and in the box, checked in float64 without tolerance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BOUNDED, count, ensemble, labelled, perturbation_norm, random, uniform

from robust_ensembles.attacks import (
    APGD,
    BIM,
    CW,
    FGSM,
    MIM,
    PGD,
    CarliniWagnerL2,
    UniformNoise,
)
from robust_ensembles.attacks.engine.balls import NORMS, L2Ball, LinfBall

EPS = st.one_of(
    st.sampled_from([8 / 255, 4 / 255, 1 / 255, 0.031, 0.1, 0.3, 1e-3, 1e-7, 0.0]),
    st.floats(1e-6, 2.0),
)
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SHORT = [FGSM, BIM, MIM, PGD, CW, UniformNoise]
LONG = [attack for attack in BOUNDED if attack not in SHORT]
every_norm = pytest.mark.parametrize("norm", NORMS)
common_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def pixels(n_samples, n_features, seed):
    """Eight-bit values in [0, 1], both ends included, as float32."""
    levels = (256 * uniform(n_samples, n_features, seed=seed)).floor()
    levels[0, 0], levels[-1, -1] = 0, 255
    return levels.float() / 255


def within_box(eps, norm):
    """More than the box is wide is refused in the maximum norm."""
    return min(eps, 1.0) if norm == "linf" else eps


def assert_inside(x_adv, x, eps, norm, box=(0.0, 1.0)):
    assert x_adv.dtype == x.dtype
    # in float64 the norm itself is rounded
    slack = 1e-14 if x.dtype == torch.float64 and norm != "linf" else 0.0
    assert perturbation_norm(x_adv, x, norm).max() <= eps * (1 + slack)
    if box is not None:
        assert x_adv.double().min() >= box[0]
        assert x_adv.double().max() <= box[1]


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@few
@given(eps=EPS, seed=st.integers(0, 1000), boxed=st.booleans())
def test_projection_and_random_point(norm, dtype, eps, seed, boxed):
    x = pixels(9, 12, seed).to(dtype)
    box = (0.0, 1.0) if boxed else None
    ball = NORMS[norm](x, eps, box)
    far = x + 3 * eps * random(9, 12, seed=seed, dtype=dtype)
    for point in (ball.project(far), ball.random_point(seed), ball.project(x + ball.steepest(far))):
        assert_inside(point, x, eps, norm, box)
    assert torch.equal(ball.project(x), x)


@common_norms
@pytest.mark.parametrize("attack", SHORT)
@few
@given(eps=EPS, seed=st.integers(0, 1000), stop=st.booleans())
def test_attacks(attack, norm, eps, seed, stop):
    module = ensemble(n_features=12, dtype=torch.float32)
    x = pixels(6, 12, seed)
    y = torch.arange(6) % 3
    eps = within_box(eps, norm)
    found = attack(eps=eps, norm=norm, clip_values=(0, 1))(module, x, y, stop_when_broken=stop)
    assert_inside(found, x, eps, norm)


@common_norms
@pytest.mark.parametrize("attack", LONG)
@settings(few, max_examples=8)
@given(eps=EPS, seed=st.integers(0, 1000))
def test_long_attacks(attack, norm, eps, seed):
    module = ensemble(n_features=12, dtype=torch.float32)
    x, y = pixels(6, 12, seed), torch.arange(6) % 3
    eps = within_box(eps, norm)
    found = attack(eps=eps, norm=norm, clip_values=(0, 1), **count(attack, 8))(module, x, y)
    assert_inside(found, x, eps, norm)


@settings(few, max_examples=15)
@given(eps=EPS, seed=st.integers(0, 1000))
def test_apgd_in_l1(eps, seed):
    module = ensemble(n_features=12, dtype=torch.float32)
    x, y = pixels(6, 12, seed), torch.arange(6) % 3
    found = APGD(eps=eps, norm="l1", clip_values=(0, 1), n_steps=12)(module, x, y)
    assert_inside(found, x, eps, "l1")


@every_norm
@pytest.mark.parametrize("boxed", [False, True])
def test_projection_is_the_nearest_point(norm, boxed):
    """Against random points of ball and box together."""
    eps = {"linf": 0.2, "l2": 0.7, "l1": 0.9}[norm]
    x, far = uniform(5, 8, seed=1), uniform(5, 8, seed=1) + random(5, 8, seed=2)
    ball = NORMS[norm](x, eps, (0, 1) if boxed else None)
    found = ball.project(far)
    assert_inside(found, x, eps, norm, (0, 1) if boxed else None)
    nearest = (found - far).norm(dim=1)
    assert (perturbation_norm(found, x, norm) > 0.99 * eps).all()
    for seed in range(400):
        other = ball.project(found + 0.1 * random(5, 8, seed=10 + seed))
        assert ((other - far).norm(dim=1) >= nearest - 1e-9).all()


def test_l1_projection_by_hand():
    """Soft thresholding; with a box, what one coordinate cannot take goes to the others."""
    x = torch.tensor([[0.5, 0.5, 0.5]]).double()
    far = x + torch.tensor([[1.0, -0.6, 0.1]])
    free = NORMS["l1"](x, 0.8, None).project(far)
    torch.testing.assert_close(free - x, torch.tensor([[0.6, -0.2, 0.0]]).double())
    boxed = NORMS["l1"](x, 0.8, (0.0, 1.0)).project(far)
    torch.testing.assert_close(boxed - x, torch.tensor([[0.5, -0.3, 0.0]]).double())


def test_sparse_steps():
    ball = NORMS["l1"](torch.zeros(2, 4), 1.0, None)
    direction = torch.tensor([[3.0, -2.0, 1.0, 0.5], [0.0, 0.0, -1.0, 0.0]])
    step = ball.sparse(direction, torch.tensor([2.0, 3.0]))
    expected = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    assert torch.equal(step, expected)


@settings(few, max_examples=8)
@given(eps=EPS, seed=st.integers(0, 1000))
def test_carlini_wagner(eps, seed):
    module = ensemble(n_features=12, dtype=torch.float32)
    x, y = pixels(6, 12, seed), torch.arange(6) % 3
    attack = CarliniWagnerL2(eps=eps, clip_values=(0, 1), n_steps=8, n_searches=2, lr=0.1)
    assert_inside(attack(module, x, y), x, eps, "l2")


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16])
def test_pixels_as_large_as_eps(levels):
    """x - eps is tiny here, and the rounding of eps to float32 many of its last places."""
    eps = levels / 255
    x = torch.arange(256, dtype=torch.float32)[:, None] / 255
    for sign in (-1, 1):
        for box in ((0.0, 1.0), None):
            found = LinfBall(x, eps, box).project(x + sign * 2 * eps)
            assert_inside(found, x, eps, "linf", box)
            reached = (found.double() - x.double()).abs()
            inside = (x + sign * 2 * eps > 0) & (x + sign * 2 * eps < 1)
            assert (reached[inside] > eps * (1 - 1e-4)).all()  # and it is not too cautious


@every_norm
def test_small_eps_on_large_values(norm):
    """eps below a unit in the last place of x leaves no room but x."""
    x = 255 * uniform(5, 7, dtype=torch.float32)
    for eps in (1e-9, 1e-6, 1e-4, 1e-2):
        found = NORMS[norm](x, eps, (0, 255)).project(x + random(5, 7, dtype=torch.float32))
        assert_inside(found, x, eps, norm, (0, 255))


@every_norm
def test_other_boxes(norm):
    """The ends of a box are what they are in X's dtype."""
    x = 0.4 * random(6, 5, dtype=torch.float32).clamp(-0.7, 1.7)
    box = (-0.3, 0.7)
    x = x.clamp(*box)
    found = NORMS[norm](x, 0.5, box).project(x + random(6, 5, seed=1, dtype=torch.float32))
    low, high = torch.tensor(box)
    assert found.min() == low
    assert found.max() == high
    assert perturbation_norm(found, x, norm).max() <= 0.5


@every_norm
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1.0, 1e30])
def test_steepest_step_has_unit_length(norm, scale):
    """Also where the squares of a float32 gradient under- or overflow."""
    direction = scale * random(4, 6, dtype=torch.float32)
    step = NORMS[norm](torch.zeros(4, 6), 1.0, None).steepest(direction)
    length = perturbation_norm(step, torch.zeros(4, 6), norm)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-4, atol=0)
    assert ((step * direction).sum(dim=1) > 0).all()
    moved = step != 0
    assert torch.equal(step.sign()[moved], direction.sign()[moved])
    assert int(moved.sum()) == (4 if norm == "l1" else 24)


@every_norm
def test_no_direction_is_no_step(norm):
    step = NORMS[norm](torch.zeros(4, 6), 1.0, None).steepest(torch.zeros(4, 6))
    assert torch.equal(step, torch.zeros(4, 6))


def test_projection_on_the_sphere_keeps_the_direction():
    x, delta = uniform(5, 7), 3 * random(5, 7)
    ball = L2Ball(x, 0.5, None)
    expected = x + 0.5 * delta / delta.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ball.project(x + delta), expected, rtol=0, atol=1e-12)
    inside = x + 0.01 * delta
    torch.testing.assert_close(ball.project(inside), inside, rtol=0, atol=1e-15)


@every_norm
def test_random_points_fill_the_ball(norm):
    n_features = 3
    x = random(4000, n_features)
    noise = NORMS[norm](x, 0.5, None).random_point(0) - x
    assert noise.mean(dim=0).abs().max() < 0.02
    # uniform: the share within a fraction r of the radius is r^d
    length = perturbation_norm(noise, torch.zeros_like(noise), norm) / 0.5
    for r in (0.5, 0.8, 0.95):
        assert float((length < r).double().mean()) == pytest.approx(r**n_features, abs=0.03)


@every_norm
def test_indexing_a_ball(norm):
    x, index = uniform(6, 4), torch.tensor([4, 0, 3])
    ball, far = NORMS[norm](x, 0.1, (0, 1)), x + random(6, 4)
    assert torch.equal(ball[index].project(far[index]), ball.project(far)[index])
    assert torch.equal(ball[index].random_point(3), ball.random_point(3)[index])


@pytest.mark.parametrize("attack", SHORT)
@common_norms
def test_no_room_changes_nothing(attack, norm):
    module = ensemble()
    x, y = labelled(module)
    for stop in (False, True):
        assert torch.equal(attack(eps=0, norm=norm)(module, x, y, stop_when_broken=stop), x)
