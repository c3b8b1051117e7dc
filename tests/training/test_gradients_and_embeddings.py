"""Input gradients, embeddings by hooks, and one optimizer in place of many."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robust_ensembles.attacks import PGD
from robust_ensembles.modules import MLP, Ensemble, LeNet5, ResNet20
from robust_ensembles.training import (
    Batch,
    TrainingStep,
    captured_embedding,
    embedding_size,
    final_linear,
    input_gradients,
)


def members(n=3):
    return [MLP((6,), 4, hidden_sizes=(5,)) for _ in range(n)]


def make_step(nets, x=None):
    x = torch.rand(7, 6) if x is None else x
    index = torch.arange(len(x))
    return TrainingStep(Ensemble(nets), None, Batch(x, index % 4, None, index), (0.0, 1.0), 3)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_are_separate_optimizers(name):
    together, apart = members(), members()
    for a, b in zip(together, apart, strict=True):
        b.load_state_dict(a.state_dict())
    start = copy.deepcopy(together)
    shared = OPTIMIZERS[name]([{"params": list(net.parameters())} for net in together])
    own = [OPTIMIZERS[name](net.parameters()) for net in apart]
    for _ in range(20):
        x, y = torch.rand(8, 6), torch.randint(4, (8,))
        shared.zero_grad()
        torch.stack([F.cross_entropy(net(x), y) for net in together]).sum().backward()
        shared.step()
        for net, optimizer in zip(apart, own, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for a, b, c in zip(together, apart, start, strict=True):
        for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
            assert torch.equal(p, q)
            assert not torch.equal(p, r)


def test_input_gradients():
    step = make_step(members())
    leaves = step.input_leaves()
    assert len({leaf.data_ptr() for leaf in [step.x, *leaves]}) == 4
    assert not step.x.requires_grad
    losses = [F.cross_entropy(m(x), step.y) for m, x in zip(step.module, leaves, strict=True)]
    g = input_gradients(torch.stack(losses), leaves)
    assert g.shape == (3, 7, 6)
    assert g.requires_grad
    for member, found in zip(step.module, g, strict=True):
        x = step.x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(member(x), step.y), x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    second = torch.autograd.grad(g[0].square().sum(), step.module[0].parameters())
    assert second[0].abs().max() > 0


def test_input_gradients_of_images():
    step = make_step([LeNet5((1, 8, 8), 4)], torch.rand(3, 1, 8, 8))
    leaves = step.input_leaves()
    loss = F.cross_entropy(step.module[0](leaves[0]), step.y)
    assert input_gradients(loss[None], leaves).shape == (1, 3, 64)


@pytest.mark.parametrize("target", [None, 1])
def test_craft(target):
    step = make_step(members())
    member = None if target is None else step.module[target]
    x_adv = step.craft(PGD(eps=0.1, n_steps=3), mode="train_frozen_stats", target=member)
    assert (x_adv - step.x).abs().max() <= 0.1 + 1e-7
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    attacked = member or step.module
    before, after = (F.cross_entropy(attacked(x), step.y) for x in (step.x, x_adv))
    assert after > before
    assert all(p.requires_grad for p in step.module.parameters())
    other = TrainingStep(step.module, None, step.batch, (0.0, 1.0), 4)
    assert not torch.equal(
        other.craft(PGD(eps=0.1, n_steps=1, step_size=0.01), mode="eval", target=member),
        step.craft(PGD(eps=0.1, n_steps=1, step_size=0.01), mode="eval", target=member),
    )


@pytest.mark.parametrize(
    ("mode", "moved", "batch_statistics"),
    [("eval", False, False), ("train_frozen_stats", False, True), ("train", True, True)],
)
def test_craft_and_batch_norm(mode, moved, batch_statistics):
    step = make_step([ResNet20((1, 8, 8), 4)], torch.rand(4, 1, 8, 8))
    buffers = {name: b.clone() for name, b in step.module.named_buffers()}
    modes = []
    hook = step.module[0].register_forward_pre_hook(lambda m, _: modes.append(m.training))
    step.craft(PGD(eps=0.1, n_steps=2), mode=mode)
    hook.remove()
    assert set(modes) == {batch_statistics}
    changed = [not torch.equal(b, buffers[name]) for name, b in step.module.named_buffers()]
    assert any(changed) == moved
    assert step.module.training


def pre_activation(net, x):
    return net.embedding(net.features(net.normalize(x)))


def last_features(net, x):
    return net.features(net.normalize(x).flatten(1))


def resnet_features(net, x):
    return nn.Sequential(*list(net.children())[:-1])(x).flatten(1)


@pytest.mark.parametrize(
    ("net", "shape", "size", "expected"),
    [
        (lambda: LeNet5((1, 28, 28), 4, embedding_size=64), (1, 28, 28), 64, pre_activation),
        (lambda: MLP((6,), 4, hidden_sizes=(9, 5)), (6,), 5, last_features),
        (lambda: torchvision.models.resnet18(num_classes=4), (3, 32, 32), 512, resnet_features),
    ],
    ids=["lenet5", "mlp", "resnet18"],
)
def test_embedding(net, shape, size, expected):
    net = net().eval()
    x = torch.rand(3, *shape)
    with captured_embedding(net) as captured:
        logits = net(x)
        net(2 * x)
    net(x)  # after the block: not collected
    assert embedding_size(net, "test") == size
    assert [v.shape for v in captured] == [(3, size)] * 2
    torch.testing.assert_close(captured[0], expected(net, x))  # LeNet5's before its activation
    assert torch.autograd.grad(logits.sum(), captured[0])[0].abs().max() > 0


def test_hook_is_removed_after_an_error():
    net = MLP((6,), 4)
    with pytest.raises(RuntimeError, match="on purpose"), captured_embedding(net):
        raise RuntimeError("on purpose")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_final_linear():
    name, layer = final_linear(torchvision.models.resnet18(num_classes=4), "test")
    assert (name, layer.out_features) == ("fc", 4)
    with pytest.raises(ValueError, match="test needs a network that ends in a linear layer"):
        final_linear(nn.Conv2d(1, 1, 1), "test")
