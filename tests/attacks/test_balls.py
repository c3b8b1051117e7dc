"""Balls: projections, steepest steps and random points, exact in float64 without tolerance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import assert_inside, perturbation_norm, pixels, random, uniform

from robust_ensembles.attacks.engine.balls import NORMS, LinfBall, water_filling

EPS = st.one_of(
    st.sampled_from([8 / 255, 4 / 255, 1 / 255, 0.031, 0.1, 0.3, 1e-3, 1e-7, 0.0]),
    st.floats(1e-6, 2.0),
)
every_norm = pytest.mark.parametrize("norm", NORMS)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(eps=EPS, seed=st.integers(0, 1000), boxed=st.booleans())
def test_projection_and_random_point(norm, dtype, eps, seed, boxed):
    x = pixels(9, 12, seed).to(dtype)
    box = (0.0, 1.0) if boxed else None
    ball = NORMS[norm](x, eps, box)
    far = x + 3 * eps * random(9, 12, seed=seed, dtype=dtype)
    for point in (ball.project(far), ball.random_point(seed), ball.project(x + ball.steepest(far))):
        assert_inside(point, x, eps, norm, box)
    assert torch.equal(ball.project(x), x)


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
    for seed in range(200):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vessels_hold_the_amount(dtype):
    speed, room = uniform(30, 50, seed=1, dtype=dtype), uniform(30, 50, seed=2, dtype=dtype)
    speed[:, ::7], room[:, ::5] = 0, 0
    amount = uniform(30, seed=3, dtype=dtype) * room.sum(dim=1) / 2
    lam = water_filling(speed, room, amount)
    held = torch.minimum(lam[:, None] * speed, room).sum(dim=1)
    torch.testing.assert_close(held, amount)


def test_vessels_by_hand():
    speed = torch.tensor([[1.0, 2.0, 0.0]]).repeat(5, 1)
    room = torch.tensor([[3.0, 1.0, 9.0]]).repeat(5, 1)
    amount = torch.tensor([0.0, 1.2, 3.0, 4.0, 4.1])
    expected = torch.tensor([0.0, 0.4, 2.0, 3.0, torch.inf])
    torch.testing.assert_close(water_filling(speed, room, amount), expected)
    endless = torch.full_like(room, torch.inf)
    torch.testing.assert_close(water_filling(speed, endless, amount), amount / 3)
    assert water_filling(0 * speed, room, amount[:1].expand(5)).tolist() == [0.0] * 5
    assert water_filling(0 * speed, room, amount)[1:].isinf().all()
