"""Attacks leave no trace: not on the module, not on the global random numbers."""

import numpy as np
import pytest
import torch
from small_models import uniform, with_the_others
from torch import nn

from robust_ensembles.attacks import (
    APGD,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    DeepFool,
    EnsembleAutoAttack,
    External,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
    WorstCase,
    is_broken,
)
from robust_ensembles.attacks.engine.forward import frozen
from robust_ensembles.modules import Ensemble

ATTACKS = {
    "fgsm": FGSM(),
    "pgd": PGD(n_restarts=2),
    "pgd-l2": PGD(norm="l2"),
    "mim": MIM(),
    "noise": UniformNoise(),
    "unseeded": PGD(random_state=None),
    "worst": WorstCase([FGSM(), PGD()]),
    "apgd": APGD(n_steps=5, random_state=None),
    "apgd-targeted": TargetedAPGD(n_steps=5),
    "mora": MORA(n_steps=5),
    "fab": FAB(n_steps=5),
    "deepfool": DeepFool(n_steps=5),
    "carlini-wagner": CarliniWagnerL2(n_steps=5, n_searches=2),
    "square": Square(n_queries=5, norm="l2"),
    "autoattack": AutoAttack(n_queries=2),
    "ensemble-autoattack": EnsembleAutoAttack(n_queries=2),
    "transfer": Transfer(nn.Linear(5, 3), PGD(n_steps=3)),
    "external": External(function=lambda module, x, y: x + module(x).sum() * 0, eps=0.1),
    "is_broken": is_broken,
}
ATTACKS = with_the_others(ATTACKS)


class Moody(nn.Module):
    """Dropout, BatchNorm, a buffer that each forward replaces, and a fuse."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
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
def module():
    """In training mode, with one member and one BatchNorm frozen, in two ways."""
    members = [Moody(), Moody()]
    module = Ensemble(members).train()
    members[0].layers[1].eval()
    members[1].layers[0].requires_grad_(False)
    return module


@pytest.fixture
def x():
    return uniform(6, 5, dtype=torch.float32)


@pytest.fixture
def y():
    return torch.arange(6) % 3


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


@pytest.mark.parametrize("name", ATTACKS)
def test_module_is_put_back(name, module, x, y):
    before = state(module)
    ATTACKS[name](module, x, y)
    assert_same_state(module, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("boom")])
@pytest.mark.parametrize("name", ATTACKS)
def test_module_is_put_back_after_an_error(name, error, module, x, y):
    before = state(module)
    module[1].fuse = error
    with pytest.raises(error if isinstance(error, type) else type(error)):
        ATTACKS[name](module, x, y)
    assert_same_state(module, before)


def test_the_module_itself_survives_a_frozen_submodule(module):
    """Eval inside train stays eval, and train inside eval stays train."""
    module.eval()
    module[0].layers[2].train()
    before = state(module)
    with frozen(module):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
    assert_same_state(module, before)


def test_attacked_in_eval_mode(module, x, y):
    """Dropout and batch statistics would make the results differ from run to run."""
    first = PGD(eps=0.3)(module, x, y)
    module.eval()
    assert torch.equal(PGD(eps=0.3)(module, x, y), first)


@pytest.mark.parametrize("mode", ["eval", "train_frozen_stats", "train"])
def test_craft_modes(mode, x):
    module = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with frozen(module, mode):
        module(x)
        during = module[0](x)
    after = module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert moved == (statistics if mode == "train" else set())
    uses_batch = during.mean(dim=0).abs().max() < 1e-5
    assert bool(uses_batch) == (mode != "eval")
    assert module.training


def test_parameters_shared_by_two_members(x, y):
    shared = nn.Linear(5, 3)
    shared.bias.requires_grad_(False)
    module = Ensemble([shared, shared])
    before = state(module)
    PGD()(module, x, y)
    assert_same_state(module, before)


@pytest.mark.parametrize("name", ATTACKS)
def test_global_random_numbers_are_not_touched(name, module, x, y):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    ATTACKS[name](module, x, y)
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))


def test_works_without_gradients_enabled(module, x, y):
    expected = PGD(eps=0.3)(module, x, y)
    with torch.no_grad():
        assert torch.equal(PGD(eps=0.3)(module, x, y), expected)
    assert torch.is_grad_enabled()
