"""What holds for every attack that is declared, whatever it does."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from small_models import (
    ATTACKS,
    BOUNDED,
    DECLARED,
    Stepwise,
    assert_inside,
    ensemble,
    labelled,
    partly_wrong,
    pixels,
    quick,
)
from torch import nn

from robust_ensembles.attacks import (
    APGD,
    FAB,
    PGD,
    CarliniWagnerL2,
    MinimumNormAttack,
    Transfer,
    UniformNoise,
    is_broken,
)
from robust_ensembles.modules import Ensemble

pytestmark = pytest.mark.usefixtures("short_cascades")
every_attack = pytest.mark.parametrize("name", ATTACKS)
problem = cache(partial(partly_wrong, 23, 5))


@cache
def examples(name):
    """Of all samples at once."""
    return ATTACKS[name](*problem())


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- samples and batches


@every_attack
def test_a_sample_does_not_depend_on_its_batch(name):
    module, x, y = problem()
    attack, together = ATTACKS[name], examples(name)
    broken, already = is_broken(module, together, y), is_broken(module, x, y)
    assert torch.equal(together[already], x[already])
    assert 5 < broken.sum() < 23  # so that samples leave, and others go on
    order = torch.tensor([20, 3, 11, 0, 7, 8, 22, 5])
    for index in (order, *torch.arange(10).split(7), *torch.tensor([[0], [1], [4]])):
        assert_close(attack(module, x[index], y[index]), together[index])
    nothing = attack(module, x[:0], y[:0])
    assert nothing.shape == (0, 6)
    assert nothing.dtype == x.dtype


@every_attack
def test_the_same_from_any_kind_of_memory(name):
    """As an array, strided, with a graph, as images; X is not changed."""
    module, x, y = problem()
    attack, expected, before = ATTACKS[name], examples(name), x.clone()
    found = attack.generate(module, x.numpy(), y.numpy())
    assert np.array_equal(found, expected.numpy())
    assert torch.equal(x, before)
    found = attack(module, x.T.contiguous().T.requires_grad_(), y)
    assert not found.requires_grad
    assert_close(found, expected)
    if name != "Transfer":  # whose surrogates take rows
        images = Ensemble([nn.Sequential(nn.Flatten(), member) for member in module])
        # where Square's patches are those of rows
        shape = (1, 1, 6) if "Square" in name or "Auto" in name else (3, 2, 1)
        assert_close(attack(images, x.view(23, *shape), y).flatten(1), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_attack
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_as_on_the_processor(name, where):
    """X may lie beside the module or not; the result lies where X does."""
    module, x, y = partly_wrong(23, 5)
    module.cuda()
    found = ATTACKS[name](module, x.to(where), y.to(where))
    assert found.device.type == where
    assert_close(found.cpu(), examples(name))
    broken = is_broken(module, found, y.to(where)).cpu()
    assert torch.equal(broken, is_broken(problem()[0], examples(name), y))


@pytest.mark.parametrize("name", [n for n, attack in ATTACKS.items() if attack.gradient_free])
def test_needs_no_gradient(name):
    _, x, _ = problem()
    y = (x[:, 0] <= 0.5).long()
    attack = ATTACKS[name]
    if name == "Transfer":  # whose surrogates know three classes
        attack = Transfer(Stepped(), PGD(eps=0.3, random_start=False))
    assert 0 < is_broken(Stepwise(), attack(Stepwise(), x, y), y).sum() < len(x)


class Stepped(nn.Module):
    """What `Stepwise` looks at, with a gradient."""

    def forward(self, x):
        return torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], dim=1)


MORE = {
    "PGD": (PGD(eps=0.13, n_steps=2), "n_restarts"),
    "UniformNoise": (UniformNoise(eps=0.2), "n_draws"),
    "FAB": (FAB(eps=0.13, n_steps=2, n_target_classes=1), "n_restarts"),
    **{
        f"APGD-{loss}": (APGD(eps=0.13, n_steps=4, loss=loss), "n_restarts")
        for loss in ("margin", "dlr", "member_cross_entropy", "cross_entropy")
    },
}


@pytest.mark.parametrize(("attack", "times"), MORE.values(), ids=MORE)
def test_more_walks_break_more(attack, times):
    """What one walk breaks stays as it is, however high the loss of the next."""
    module, x, y = problem()
    found = [attack.set_params(**{times: n})(module, x, y) for n in (1, 2, 30)]
    broken = [is_broken(module, x_adv, y) for x_adv in found]
    for i in (0, 1):
        assert torch.equal(found[i + 1][broken[i]], found[i][broken[i]])
    assert broken[0].sum() <= broken[2].sum() < len(x)
    if times == "n_draws" or type(attack) is PGD:
        assert broken[0].sum() < broken[2].sum()


# ---------------------------------------------------------------- ball, box and numbers

IN_BALLS = {
    **{f"{cls.__name__}-{norm}": (cls, norm) for cls in BOUNDED for norm in ("linf", "l2")},
    "APGD-l1": (APGD, "l1"),
    "CarliniWagnerL2": (CarliniWagnerL2, "l2"),
}


@pytest.mark.parametrize(("cls", "norm"), IN_BALLS.values(), ids=IN_BALLS)
def test_in_the_ball_and_in_the_box(cls, norm):
    """In float64, without tolerance."""
    module, y = ensemble(n_features=12, dtype=torch.float32), torch.arange(6) % 3
    # the nearest examples are wanted whatever eps is
    stops = [True] if issubclass(cls, MinimumNormAttack) else [True, False]
    for seed, eps in enumerate((8 / 255, 0.031, 0.1, 0.3, 0.9, 1e-3, 1e-7, 0.0)):
        x = pixels(6, 12, seed)
        attack = quick(cls, 6, eps=eps, norm=norm, clip_values=(0, 1))
        for stop in stops:
            assert_inside(attack(module, x, y, stop_when_broken=stop), x, eps, norm)


@pytest.mark.parametrize("cls", BOUNDED)
def test_double_precision_through_a_single_precision_module(cls):
    """As float64 X of a Pipeline meets a float32 network."""

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = ensemble(dtype=torch.float32)

        def forward(self, x):
            return self.module(x.float())

        def member_logits(self, x):
            return self.module.member_logits(x.float())

    x, y = labelled(Single(), 12)
    found = quick(cls)(Single(), x, y)
    assert found.dtype == torch.float64
    assert is_broken(Single(), found, y).any()


# ---------------------------------------------------------------- no trace


class Moody(nn.Module):
    """Dropout, BatchNorm, a buffer that each forward replaces, and a fuse."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.fuse = None

    def forward(self, x):
        self.calls = self.calls + 1
        if self.fuse is not None and len(x) > 1:  # a single sample is tried first
            raise self.fuse
        return self.layers(x)


@pytest.fixture
def moody():
    """In training mode, with one member and one BatchNorm frozen, in two ways."""
    members = [Moody(), Moody()]
    module = Ensemble(members).double().train()
    members[0].layers[1].eval()
    members[1].layers[0].requires_grad_(False)
    return module


def state(module):
    training = {name: m.training for name, m in module.named_modules()}
    required = {name: p.requires_grad for name, p in module.named_parameters()}
    values = {name: value.clone() for name, value in module.state_dict().items()}
    return training, required, values


def assert_same_state(module, before):
    training, required, values = state(module)
    assert training == before[0]
    assert required == before[1]
    assert values.keys() == before[2].keys()
    for name, value in values.items():
        assert torch.equal(value, before[2][name]), name
    assert all(parameter.grad is None for parameter in module.parameters())


UNTOUCHED = {
    **{name: quick(declared.cls, 3) for name, declared in DECLARED.items()},
    "unseeded": PGD(random_state=None),
    "restarts": PGD(n_restarts=2),
    "is_broken": is_broken,
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_leaves_no_trace(name, moody):
    """Not on the module, not on global random numbers, and not after an error."""
    _, x, y = problem()
    before, attack = state(moody), UNTOUCHED[name]
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    attack(moody, x[:6], y[:6])
    assert_same_state(moody, before)
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))
    for error in (KeyboardInterrupt(), RuntimeError("boom")):
        moody[1].fuse = error
        with pytest.raises(type(error)):
            attack(moody, x[:6], y[:6])
        assert_same_state(moody, before)


def test_parameters_shared_by_two_members():
    _, x, y = problem()
    shared = nn.Linear(6, 3).double()
    shared.bias.requires_grad_(False)
    module = Ensemble([shared, shared])
    before = state(module)
    PGD()(module, x, y)
    assert_same_state(module, before)


def test_attacked_in_eval_mode_with_gradients(moody):
    """Dropout and batch statistics would make the results differ from run to run."""
    _, x, y = problem()
    first = PGD(eps=0.3)(moody, x, y)
    with torch.no_grad():
        assert torch.equal(PGD(eps=0.3)(moody, x, y), first)
    moody.eval()
    assert torch.equal(PGD(eps=0.3)(moody, x, y), first)
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- parameters that all share


def test_seeds():
    module, x, y = problem()
    results = [
        PGD(eps=0.05, n_steps=1, random_state=seed)(module, x, y, stop_when_broken=False)
        for seed in (0, 0, 1, -1, None, None)
    ]
    assert torch.equal(results[0], results[1])
    for i in range(1, 6):
        for j in range(i + 1, 6):
            assert not torch.equal(results[i], results[j])


def test_batch_size_changes_nothing():
    module, x, y = problem()
    for name in ("PGD", "MIM", "UniformNoise", "APGD", "FAB"):
        attack = type(ATTACKS[name])(**{**ATTACKS[name].get_params(), "batch_size": 3})
        assert_close(attack(module, x, y), examples(name))
    assert torch.equal(is_broken(module, x, y, batch_size=4), is_broken(module, x, y))
