"""Distilled and repelled images, and the perturbations that are kept for them."""

import pytest
import torch
from torch import nn

from robust_ensembles.attacks.engine.ascent import StepRule
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.modules import MLP, Ensemble, ResNet20
from robust_ensembles.training import (
    Batch,
    PerturbationMemory,
    TrainingStep,
    distill,
    features,
    repel,
)

LAYERS = ["features.0", "features.2", "classifier"]
EPS = 0.07


def make_step(nets, x, box=(0.0, 1.0)):
    index = torch.arange(len(x))
    return TrainingStep(Ensemble(nets), None, Batch(x, index % 4, None, index), box, 3)


def wide_mlp(dtype=torch.float64):
    return MLP((6,), 4, hidden_sizes=(20, 20)).to(dtype)


def small_resnets():
    return [ResNet20((1, 8, 8), 4, width=2) for _ in range(2)]


def plain_features(net, layer, x):
    """The layers of `wide_mlp` once more."""
    first = net.features[0](x)
    if layer == "features.0":
        return first
    second = net.features[2](first.relu())
    return second if layer == "features.2" else net.classifier(second.relu())


def looped(net, layer, x, target, walk, eps, box, *, sign):
    """DVERGE's solver for one sample after the other, with momentum 1; `walk` starts at x."""
    results = []
    for center, goal in zip(x, target, strict=True):
        z, momentum = center.clone(), torch.zeros_like(center)
        for _ in range(walk.n_steps):
            z.requires_grad_()
            loss = (plain_features(net, layer, z[None])[0] - goal).square().mean()
            (g,) = torch.autograd.grad(loss, z)
            momentum = momentum + g / max(float(g.abs().sum()), 1e-12)
            z = (z + sign * walk.step_size * momentum.sign()).detach()
            z = torch.minimum(torch.maximum(z, center - eps), center + eps).clamp(*box)
        results.append(z)
    return torch.stack(results)


@pytest.mark.parametrize("n_steps", [1, 2, 10])
@pytest.mark.parametrize("layer", LAYERS)
def test_distill_is_dverges_solver(layer, n_steps):
    net, x, x_target = wide_mlp(), torch.rand(5, 6).double(), torch.rand(5, 6).double()
    eps, walk = 0.4, StepRule(n_steps, 0.11, decay=1.0)
    step = make_step([net], x)
    with step.frozen("train_frozen_stats"):
        found = distill(step, net, layer, x_target=x_target, eps=eps, walk=walk)
        target = plain_features(net, layer, x_target)
        expected = looped(net, layer, x, target, walk, eps, (0.0, 1.0), sign=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not found.requires_grad


def test_momentum_and_its_normalization_matter_above():
    """Else the comparison would pass with plain sign descent."""
    net, x, x_target = wide_mlp(), torch.rand(5, 6).double(), torch.rand(5, 6).double()
    step = make_step([net], x)
    with step.frozen("train_frozen_stats"):
        found = [
            distill(
                step,
                net,
                LAYERS[1],
                x_target=x_target,
                eps=0.4,
                walk=StepRule(10, 0.11, decay=decay),
            )
            for decay in (1.0, None, 0.5)
        ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("decay", [None, 1.0])
def test_repel_in_one_step(decay):
    net, x = wide_mlp(), torch.rand(5, 6).double()
    step = make_step([net], x)
    start = (x + EPS * (2 * torch.rand(5, 6) - 1)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    distance = plain_features(net, LAYERS[1], leaf) - plain_features(net, LAYERS[1], x)
    (g,) = torch.autograd.grad(distance.square().sum(), leaf)
    walk = StepRule(1, 0.06, decay)
    with step.frozen("eval"):
        found = repel(step, net, LAYERS[1], start=start, ball=ball_of(step, EPS), walk=walk)
    moved = start + 0.06 * g.sign()
    expected = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not found.requires_grad


def test_repel_stays_where_the_gradient_is_zero():
    net, x = wide_mlp(), torch.rand(5, 6).double()
    step = make_step([net], x)
    with step.frozen("eval"):
        found = repel(
            step, net, LAYERS[0], start=x, ball=ball_of(step, EPS), walk=StepRule(3, 0.02)
        )
    assert torch.equal(found, x)


def ball_of(step, eps):
    return LinfBall(step.x, eps, step.clip_values)


def outcome(step, net, layer, how, eps=EPS):
    """The images, where the walk started, and the features that its distance is measured from."""
    walk = StepRule(10, eps / 5, decay=1.0)
    if how == "distill":
        x_target = step.x.roll(1, dims=0)
        found = distill(step, net, layer, x_target=x_target, eps=eps, walk=walk)
        return found, step.x, features(net, layer, x_target)
    start = step.x + eps * (2 * torch.rand_like(step.x) - 1)
    start = start if step.clip_values is None else start.clamp(*step.clip_values)
    found = repel(step, net, layer, start=start, ball=ball_of(step, eps), walk=walk)
    return found, start, features(net, layer, step.x)


@pytest.mark.parametrize("how", ["distill", "repel"])
@pytest.mark.parametrize("mode", ["eval", "train_frozen_stats", "train"])
@pytest.mark.parametrize("layer", ["stem.1", "stages.4.residual_sum", "classifier"])
def test_distance_of_features(layer, mode, how):
    """Down to the other sample's for distilled images, up from one's own for repelled ones."""
    nets = small_resnets()
    step = make_step(nets, torch.rand(8, 1, 8, 8))
    with step.frozen(mode):
        found, start, target = outcome(step, nets[1], layer, how)
        before, after = (
            (features(nets[1], layer, x) - target).square().flatten(1).mean(dim=1)
            for x in (start, found)
        )
    factor = after.mean() / before.mean()
    assert factor < 0.95 if how == "distill" else factor > 2


@pytest.mark.parametrize("how", ["distill", "repel"])
@pytest.mark.parametrize("box", [(0.0, 1.0), (-2.0, 2.0), None])
def test_ball_and_box(how, box):
    """Exactly so, in double precision."""
    net = wide_mlp(torch.float32)
    low, high = box or (0.0, 1.0)
    x = low + (high - low) * torch.rand(40, 6)
    x[:10] = torch.where(x[:10] < (low + high) / 2, low, high)  # corners of the box
    step = make_step([net], x, box)
    with step.frozen("eval"):
        found, _, _ = outcome(step, net, LAYERS[1], how)
    distance = (found.double() - x.double()).abs()
    assert distance.max() <= EPS
    assert distance.max() > 0.99 * EPS
    if box is None:
        assert found.min() < 0
        assert found.max() > 1
    else:
        assert (found.min(), found.max()) == box
    assert found.shape == x.shape
    assert found.dtype == x.dtype


@pytest.mark.parametrize("how", ["distill", "repel"])
@pytest.mark.parametrize(
    ("mode", "moved"), [("eval", False), ("train_frozen_stats", False), ("train", True)]
)
def test_members_are_left_alone(mode, moved, how):
    nets = small_resnets()
    step = make_step(nets, torch.rand(4, 1, 8, 8))
    x = step.x.clone()
    state = {name: value.clone() for name, value in step.module.state_dict().items()}
    with step.frozen(mode):
        outcome(step, nets[0], "stages.4.residual_sum", how)
    parameters = dict(step.module.named_parameters())
    changed = [n for n, v in step.module.state_dict().items() if not torch.equal(v, state[n])]
    assert bool(changed) == moved
    assert not set(changed) & set(parameters)
    # the layers behind are never reached, the other member neither
    assert all(name.startswith("members.0.") for name in changed)
    assert not any("stages.5." in name for name in changed)
    assert all(p.grad is None and p.requires_grad for p in parameters.values())
    assert step.module.training
    assert torch.equal(step.x, x)
    assert not step.x.requires_grad


def test_batch_norm_of_the_mode():
    """Batch statistics or running ones: other features, other images."""
    nets = small_resnets()
    step = make_step(nets, torch.rand(4, 1, 8, 8))
    found = {}
    for mode in ("eval", "train_frozen_stats", "train"):
        with step.frozen(mode):
            found[mode], _, _ = outcome(step, nets[0], "stages.4.bn1", "distill")
    assert torch.equal(found["train"], found["train_frozen_stats"])
    assert not torch.equal(found["eval"], found["train_frozen_stats"])


def test_distilled_from_itself_stays():
    """The gradient is zero there, and its norm too: no NaN from 0 / 0."""
    net, x = wide_mlp(), torch.rand(5, 6).double()
    step = make_step([net], x)
    with step.frozen("eval"):
        walk = StepRule(5, 0.02, decay=1.0)
        found = distill(step, net, LAYERS[1], x_target=x, eps=EPS, walk=walk)
    assert torch.equal(found, x)


def test_momentum_goes_on_where_the_gradient_vanishes():
    """Behind a dead ReLU, where dividing by the gradient's length would end the walk."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(-0.5)
    step = make_step([net], torch.tensor([[0.55]]))
    with step.frozen("eval"):
        walk = StepRule(3, 0.1, decay=1.0)
        found = distill(step, net, "1", x_target=torch.zeros(1, 1), eps=0.4, walk=walk)
    torch.testing.assert_close(found, torch.tensor([[0.25]]))


def test_start_outside_the_box():
    """Augmentation may push x out of the box: the walk starts at the nearest point inside."""
    net = wide_mlp(torch.float32)
    x = torch.tensor([[1.05, -0.05, 0.5, 0.5, 0.5, 0.5]])
    step, seen = make_step([net], x), []
    net.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach()))
    walk = StepRule(3, 0.02, decay=1.0)
    with step.frozen("eval"):
        found = distill(step, net, LAYERS[1], x_target=x.clamp(0, 0.9), eps=EPS, walk=walk)
    assert torch.equal(seen[1], x.clamp(0, 1))
    for visited in (*seen, found):
        assert visited.min() >= 0
        assert visited.max() <= 1
    assert (found.double() - x.double()).abs().max() <= EPS


class TestPerturbationMemory:
    def test_empty_at_first(self):
        memory = PerturbationMemory(10)
        like = torch.rand(3, 2, 5, dtype=torch.float64)
        kept = memory.recall(torch.tensor([7, 0, 3]), like=like)
        assert kept.shape == like.shape
        assert kept.dtype == torch.float64
        assert kept.isnan().all()

    def test_recalls_what_was_kept(self):
        memory = PerturbationMemory(10)
        first, index = torch.rand(3, 4), torch.tensor([7, 0, 3])
        memory.keep(index, first)
        assert torch.equal(memory.recall(index.flip(0), like=first), first.flip(0))
        kept = memory.recall(torch.arange(10), like=torch.rand(10, 4))
        assert kept.isnan().all(dim=1).tolist() == [i not in (7, 0, 3) for i in range(10)]

    def test_the_last_one_counts(self):
        memory = PerturbationMemory(10)
        first, second = torch.rand(3, 4), torch.rand(2, 4)
        memory.keep(torch.tensor([7, 0, 3]), first)
        memory.keep(torch.tensor([3, 9]), second)
        expected = torch.stack([first[0], first[1], second[0], second[1]])
        assert torch.equal(memory.recall(torch.tensor([7, 0, 3, 9]), like=expected), expected)

    def test_what_is_recalled_is_a_copy(self):
        memory = PerturbationMemory(4)
        index, values = torch.arange(4), torch.rand(4, 2)
        memory.keep(index, values)
        memory.recall(index, like=values).zero_()
        expected = values.clone()
        values.zero_()
        assert torch.equal(memory.recall(index, like=values), expected)

    def test_recalling_writes_nothing(self):
        memory = PerturbationMemory(10)
        memory.recall(torch.tensor([1]), like=torch.rand(1, 4))
        assert memory.kept is None

    def test_device(self):
        like = torch.empty(2, 3, device="meta")
        kept = PerturbationMemory(5).recall(torch.tensor([0, 1], device="meta"), like=like)
        assert kept.device.type == "meta"
