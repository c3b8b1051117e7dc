"""Attacks on convolutional modules take a faster way to the same decisions."""

import logging

import pytest
import torch
from small_models import BOUNDED, quick, uniform
from torch import nn

from robust_ensembles._system import log_once
from robust_ensembles.attacks import FAB, PGD, CarliniWagnerL2, External, base, is_broken
from robust_ensembles.attacks.engine.fast_eval import FastEval, observe, plain_layers
from robust_ensembles.attacks.engine.forward import frozen
from robust_ensembles.modules import Ensemble, LeNet5, ResNet20

ATTACKS = {cls.__name__: quick(cls, 5, eps=0.1, clip_values=(0, 1)) for cls in BOUNDED}
ATTACKS["PGD-l2"] = PGD(eps=0.4, norm="l2", n_steps=5, clip_values=(0, 1))


class Branching(nn.Module):
    """Each way in which two layers may not be a pair, beside some that may."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice, self.norms = nn.Conv2d(4, 4, 3, padding=1), nn.ModuleList(norms(2, 4))
        self.reused, self.norm_reused = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.activated, self.norm_activated = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.relu_reused, self.pool_reused = nn.ReLU(), nn.MaxPool2d(2)
        self.linear, self.norm_rows = nn.Linear(16, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        if not isinstance(x, torch.Tensor):  # what a tracer could not follow
            raise TypeError("no tensor")
        x = self.norm(self.first(x))
        x = self.norms[0](self.twice(x)) + self.norms[1](self.twice(x.tanh()))
        between = self.reused(x)
        x = self.norm_reused(between) * between.sigmoid()
        x = self.norm_activated(self.activated(x).tanh())
        x = self.pool(self.relu(x))
        rectified = self.relu_reused(x)
        x = self.pool_reused(rectified) + 0.1 * rectified[:, :, ::2, ::2]
        return self.last(self.norm_rows(self.linear(x.flatten(1))))


class Viewing(nn.Module):
    """Takes its memory for contiguous, which channels-last is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = (
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Linear(108, 3),
        )

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).view(len(x), -1))


def norms(n, channels):
    return [nn.BatchNorm2d(channels) for _ in range(n)]


def sequential():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def shared():
    """One convolution in both members, with a BatchNorm of each member's own behind it."""
    conv = nn.Conv2d(2, 3, 3)
    members = [
        nn.Sequential(conv, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 3)) for _ in range(2)
    ]
    return Ensemble(members)


def hooked():
    module = sequential()
    module[0].register_forward_hook(lambda layer, args, output: 2 * output)
    module[4].register_forward_pre_hook(lambda layer, args: (args[0] + 0.1,))
    return module


MODULES = {
    "branching": Branching,
    "viewing": Viewing,
    "sequential": sequential,
    "shared": shared,
    "hooked": hooked,
    "weight-norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(108, 3),
    ),
    "resnet": lambda: Ensemble([ResNet20((2, 8, 8), 3, width=4) for _ in range(2)]),
    "lenet": lambda: Ensemble([LeNet5((2, 8, 8), 3, normalize=(0.5, 0.2)) for _ in range(2)]),
}


def settle(module, seed=0, dtype=torch.float64):
    """Random weights and running statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            positive = name.endswith("running_var") or (value.ndim == 1 and "weight" in name)
            fan_in = value[0].numel() if value.ndim > 1 else 1
            value.copy_(0.5 + noise.abs() if positive else noise / fan_in**0.5)
    return module.to(dtype).eval()


def problem(name, dtype=torch.float64):
    torch.manual_seed(0)  # settle() overwrites what the layers draw
    module = settle(MODULES[name](), dtype=dtype)
    x = uniform(24, 2, 8, 8, dtype=dtype)
    with torch.no_grad():
        for member in getattr(module, "members", [module]):  # no class wins everywhere
            last = [layer for layer in member.modules() if isinstance(layer, nn.Linear)][-1]
            last.bias -= member(x).mean(dim=0)
        return module, x, module(x).argmax(dim=1)


def plainly(attack, module, x, y, monkeypatch, **params):
    """The attack on the module as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(type(attack), "_accelerates", lambda *_: False)
        return attack(module, x, y, **params)


def state(module):
    """Everything that an attack could leave behind."""
    return {
        name: (set(vars(layer)), layer.training, len(layer._forward_hooks))
        for name, layer in module.named_modules()
    }


@pytest.mark.parametrize(
    ("name", "attack"),
    [*((name, "PGD") for name in MODULES), *(("branching", attack) for attack in ATTACKS)],
)
def test_same_examples(attack, name, monkeypatch):
    module, x, y = problem(name)
    attack = ATTACKS[attack]
    before = state(module)
    expected = plainly(attack, module, x, y, monkeypatch)
    found = attack(module, x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert torch.equal(is_broken(module, found, y), is_broken(module, expected, y))
    assert state(module) == before


@pytest.mark.parametrize("name", ["branching", "lenet"])
@pytest.mark.parametrize("attack", ["PGD", "APGD", "Square"])
def test_same_decisions_in_single_precision(attack, name, monkeypatch):
    module, x, y = problem(name, torch.float32)
    broken = is_broken(module, ATTACKS[attack](module, x, y), y)
    expected = plainly(ATTACKS[attack], module, x, y, monkeypatch)
    assert torch.equal(broken, is_broken(module, expected, y))
    assert broken.any()


def pairs_of(module, x):
    with frozen(module):
        followers = observe(module, plain_layers(module), x)[1]
    names = {layer: name for name, layer in module.named_modules()}
    return {names[a]: names[b] for a, b in followers.items()}


class TestPairs:
    def test_only_what_nothing_else_looks_at(self):
        module, x, _ = problem("branching")
        assert pairs_of(module, x[:2]) == {
            "first": "norm",
            "relu": "pool",
            "linear": "norm_rows",
        }

    def test_sequential(self):
        module, x, _ = problem("sequential")
        assert pairs_of(module, x[:2]) == {"0": "1", "3": "4", "5": "6"}

    @pytest.mark.parametrize("name", ["shared", "hooked", "weight-norm"])
    def test_not_shared_nor_hooked_nor_parametrised(self, name):
        module, x, _ = problem(name)
        assert pairs_of(module, x[:2]) == ({"5": "6"} if name == "hooked" else {})

    def test_residual_networks_need_no_batch_norm(self):
        module, x, _ = problem("resnet")
        n_norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
        assert len(pairs_of(module, x[:2])) == n_norms == 2 * 19

    def test_who_only_looks_sees_what_torch_computes(self):
        module, x, _ = problem("sequential")
        expected = module[0](x)
        seen = []
        module[0].register_forward_hook(lambda layer, args, output: seen.append(output))
        assert pairs_of(module, x[:2]) == {"3": "4", "5": "6"}
        seen.clear()
        with FastEval(module, x[:2]).on():
            module(x)
        assert torch.equal(seen[-1], expected)

    def test_own_kinds_of_layers_stay(self):
        class Own(nn.Conv2d):
            def forward(self, x):
                return super().forward(x).tanh()

        module = settle(nn.Sequential(Own(2, 3, 3), nn.BatchNorm2d(3)))
        assert pairs_of(module, uniform(2, 2, 8, 8)) == {}
        halved = plain_layers(settle(sequential(), dtype=torch.float32).bfloat16())
        assert not any(list(layer.parameters()) for layer in halved)

    def test_frozen_batch_norm_in_training_mode_stays(self):
        """A module may insist on batch statistics."""
        module, x, _ = problem("sequential")
        with frozen(module):
            module[1].train()
            followers = observe(module, plain_layers(module), x)[1]
        assert module[0] not in followers


class TestFastEval:
    @pytest.mark.parametrize("name", MODULES)
    def test_same_logits_in_the_context_alone(self, name):
        module, x, _ = problem(name)
        fast = FastEval(module, x[:4])
        expected = module(x)
        before = state(module)
        with fast.on():
            torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
            assert (state(module) != before) == bool(fast)
        assert state(module) == before
        assert torch.equal(module(x), expected)

    def test_gradients_take_the_same_way_through_pooled_zeros(self):
        module, x, _ = problem("lenet")
        x = (x - 0.5).clamp_min(0).requires_grad_()  # constant patches
        fast = FastEval(module, x.detach()[:4])
        (expected,) = torch.autograd.grad(module(x).logsumexp(dim=1).sum(), x)
        with fast.on():
            (found,) = torch.autograd.grad(module(x).logsumexp(dim=1).sum(), x)
        assert torch.equal(found, expected)

    def test_put_back_after_an_error(self):
        module, x, _ = problem("sequential")
        before = state(module)
        fast = FastEval(module, x[:4])
        with pytest.raises(KeyboardInterrupt), fast.on():
            raise KeyboardInterrupt
        assert state(module) == before

    def test_put_back_after_an_error_while_it_is_prepared(self):
        module, x, y = problem("sequential")
        module.append(nn.Identity())
        before = state(module)
        module[-1].register_forward_hook(lambda _m, _x, out: out if len(out) == 1 else [][0])
        with pytest.raises(IndexError):
            PGD()(module, x, y)
        module[-1]._forward_hooks.clear()
        assert state(module) == before

    def test_channels_last_where_it_pays(self):
        module, x, _ = problem("sequential", torch.float32)
        seen = []
        with FastEval(module, x[:4]).on():
            z = module[0](x)
            seen.append(z.is_contiguous(memory_format=torch.channels_last))
        module, x, _ = problem("viewing", torch.float32)  # view() would fail
        fast = FastEval(module, x[:4])
        assert fast
        with fast.on():
            seen.append(module.conv(x).is_contiguous())
        assert seen == [True, True]

    def test_random_modules_are_left_alone_and_say_so_once(self, caplog):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = sequential()

            def forward(self, x):
                return self.layers(x + torch.randn_like(x))

        module = settle(Noisy())
        log_once.cache_clear()
        with caplog.at_level(logging.INFO, logger="robust_ensembles"):
            assert not FastEval(module, uniform(4, 2, 8, 8))
            assert not FastEval(module, uniform(4, 2, 8, 8))
        assert len(caplog.records) == 1
        assert "Noisy" in caplog.text
        assert "random" in caplog.text

    def test_nothing_to_do(self):
        module = settle(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
        assert not FastEval(module, uniform(4, 5))
        module, x, _ = problem("sequential")
        assert not FastEval(module, x[:0])


class Liar(FastEval):
    """Makes all samples look broken."""

    def __init__(self, module, x):
        super().__init__(module, x)
        last = module[-1]

        def forward(x):
            return -nn.Linear.forward(last, x)

        self._forwards[last] = forward


@pytest.mark.parametrize("attack", ATTACKS)
def test_decisions_are_those_of_the_module_itself(attack, monkeypatch):
    """Whoever is broken only for the faster module goes on with the module itself."""
    module, x, y = problem("sequential")
    expected = is_broken(module, plainly(ATTACKS[attack], module, x, y, monkeypatch), y)
    assert expected.sum() > 0
    monkeypatch.setattr(base, "FastEval", Liar)
    found = is_broken(module, ATTACKS[attack](module, x, y), y)
    assert torch.equal(found, expected)


def test_nearest_examples_hold_for_the_module_itself():
    module, x, y = problem("sequential", torch.float32)
    for attack in (FAB(n_steps=5), CarliniWagnerL2(n_steps=5, n_searches=2, lr=0.1, norm="l2")):
        found = attack(module, x, y, stop_when_broken=False)
        moved = (found != x).flatten(1).any(dim=1)
        assert moved.any()
        assert is_broken(module, found, y)[moved].all()


def test_external_attacks_see_the_module_itself():
    module, x, y = problem("sequential")
    seen = []

    def look(deployed, x, y):
        seen.extend("forward" in vars(layer) for layer in deployed.modules())
        return x

    External(function=look, eps=0.1)(module, x, y)
    assert seen
    assert not any(seen)
