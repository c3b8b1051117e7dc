"""Members as one vmapped network: the same numbers as a loop over them."""

import copy

import pytest
import torch
from members import gal_loss, looped_logits
from torch import nn

from robust_ensembles.attacks import PGD
from robust_ensembles.attacks.engine.forward import frozen
from robust_ensembles.contrib.vmap import (
    vectorized,
    vectorized_logits,
    vectorized_members,
    why_not_vectorized,
)
from robust_ensembles.losses import member_cross_entropy
from robust_ensembles.modules import MLP, Ensemble, LeNet5, ResNet20
from robust_ensembles.speed.double_backward import fast_double_backward
from robust_ensembles.training import captured_embedding

LEAKY = {"activation": "leaky_relu"}
NETWORKS = {
    "mlp": ((6,), lambda: MLP((6,), 4, hidden_sizes=(8, 5), normalize=(0.5, 0.3), **LEAKY)),
    "lenet": ((1, 8, 8), lambda: LeNet5((1, 8, 8), 4, embedding_size=7, **LEAKY)),
    "resnet": ((2, 8, 8), lambda: ResNet20((2, 8, 8), 4, width=4, **LEAKY)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    """An ensemble of three in float64, a batch, and labels."""
    shape, make = NETWORKS[request.param]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        ensemble = Ensemble([make().double() for _ in range(3)])
        x = torch.rand(6, *shape, dtype=torch.float64)
    return ensemble, x, torch.tensor([0, 1, 2, 3, 0, 1])


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_same_state(a, b, tolerance=1e-10):
    for (name, expected), found in zip(
        a.state_dict().items(), b.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_logits_gradients_and_buffers_are_those_of_a_loop(case, training, shared):
    ensemble, x, y = case
    ensemble.train(training)
    results = []
    for logits_of in (looped_logits, vectorized_logits):
        module = copy.deepcopy(ensemble)
        leaves = [(x + 0.01 * i).requires_grad_() for i in range(3)]
        logits = logits_of(module, leaves[0] if shared else leaves)
        loss = member_cross_entropy(logits, y).sum()
        inputs = leaves[:1] if shared else leaves
        gradients = torch.autograd.grad(loss, [*inputs, *module.parameters()])
        results.append((logits, gradients, module))
    (expected, expected_gradients, looped), (found, gradients, module) = results
    close(found, expected)
    close(gradients, expected_gradients)
    assert_same_state(looped, module)
    if not training:
        assert_same_state(ensemble, module, 0)


def test_second_derivatives_are_those_of_a_loop(case):
    """Those of the first step, and what twenty of them come to."""
    ensemble, x, y = case
    modules, first = [], []
    for logits_of in (looped_logits, vectorized_logits):
        module = copy.deepcopy(ensemble).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        for step in range(20):
            optimizer.zero_grad()
            gal_loss(logits_of, module, x, y).backward()
            if step == 0:
                first.append([p.grad.clone() for p in module.parameters()])
            optimizer.step()
        modules.append(module)
    close(first[1], first[0])
    assert_same_state(*modules, tolerance=1e-8)


def test_frozen_members_get_input_gradients_only(case):
    ensemble, x, _ = case
    state = copy.deepcopy(ensemble.state_dict())
    x.requires_grad_()
    with frozen(ensemble, "train_frozen_stats"):
        logits = vectorized_logits(ensemble, x)
    (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), x)
    assert gradient.abs().sum() > 0
    assert all(torch.equal(state[name], t) for name, t in ensemble.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in ensemble.parameters())


def test_an_ensemble_is_vectorized_within_the_context_only(case):
    """Attacks and copies included: no member is called by itself."""
    ensemble, x, y = case
    ensemble.eval()
    attack = PGD(eps=0.05, n_steps=3, batch_size=4)
    expected, adversarial = ensemble(x), attack(ensemble, x, y, stop_when_broken=False)
    calls = []
    handles = [member.register_forward_hook(lambda *_: calls.append(1)) for member in ensemble]
    with vectorized_members(ensemble):
        close(ensemble(x), expected)
        close(ensemble.member_logits([x, x, x]), looped_logits(ensemble, x))
        calls.clear()
        close(attack(ensemble, x, y, stop_when_broken=False), adversarial)
        assert sum(calls) < 3 * 4  # only while attacks look at the ensemble first
        duplicate = copy.deepcopy(ensemble)
        for parameter in duplicate.parameters():
            parameter.data.zero_()
        assert duplicate.member_logits(x).std(dim=-1).max() == 0
    for handle in handles:
        handle.remove()
    assert "member_logits" not in vars(ensemble)
    close(ensemble(x), expected)


def test_a_function_of_members_may_hook_them():
    """CLDL's embeddings and logits in one pass."""

    def embed(member, x):
        with captured_embedding(member) as captured:
            logits = member(x)
        return captured[0], logits

    torch_seed = torch.Generator().manual_seed(0)
    ensemble = Ensemble([NETWORKS["lenet"][1]().double() for _ in range(2)])
    x = torch.rand(3, 1, 8, 8, generator=torch_seed, dtype=torch.float64)
    embeddings, logits = vectorized(ensemble, x, embed)
    for member, embedding, z in zip(ensemble, embeddings, logits, strict=True):
        close((embedding, z), embed(member, x))
    assert why_not_vectorized(ensemble) is None


class _Counts(nn.Module):
    """Puts a new buffer in the place of the old one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.total = self.total + x.detach().sum()
        return self.linear(x)


def test_buffers_that_are_replaced_move_too():
    ensemble = Ensemble([_Counts(), _Counts()])
    inputs = [torch.ones(1, 2), torch.full((1, 2), 3.0)]
    for _ in range(2):
        vectorized_logits(ensemble, inputs)
    assert [member.total.item() for member in ensemble] == [4.0, 12.0]


def test_members_drop_different_units():
    first = nn.Sequential(nn.Identity(), nn.Dropout(0.5))
    ensemble = Ensemble([first, copy.deepcopy(first)])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        a, b = vectorized_logits(ensemble, [torch.ones(1, 200)] * 2)
    assert set(a.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(a, b)


class _Own(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.linear, self.slope = nn.Linear(2, 2), slope

    def forward(self, x):
        return nn.functional.leaky_relu(self.linear(x), self.slope)


def _hooked():
    members = [nn.Linear(2, 2), nn.Linear(2, 2)]
    members[1].register_forward_hook(lambda *_: None)
    return members


def _mixed_modes():
    members = [nn.Dropout(), nn.Dropout()]
    members[1].eval()
    return members


def _tied():
    layer = nn.Linear(2, 2)
    return [nn.Sequential(layer), nn.Sequential(layer)]


UNFIT = {
    "one member only": lambda: [nn.Linear(2, 2)],
    "differs from member 0": lambda: [nn.Linear(2, 2), nn.Linear(2, 2, bias=False)],
    "member 1 differs from member 0": lambda: [_Own(0.1), _Own(0.2)],
    "settings or mode": _mixed_modes,
    "momentum=None": lambda: [nn.BatchNorm1d(2, momentum=None) for _ in range(2)],
    "has hooks": _hooked,
    "share parameters": _tied,
    "no parameters": lambda: [nn.Flatten(), nn.Flatten()],
}


@pytest.mark.parametrize("reason", UNFIT)
def test_says_why_members_cannot_be_vectorized(reason):
    assert reason in why_not_vectorized(Ensemble(UNFIT[reason]()))


def test_fit_members_have_no_reason(case):
    ensemble, _, _ = case
    assert why_not_vectorized(ensemble) is None
    with fast_double_backward(ensemble):
        assert "forward pass was exchanged" in why_not_vectorized(ensemble)
