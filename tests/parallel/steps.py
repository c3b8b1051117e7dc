"""Parts of a training step that one process and several can run on the same batch."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from trainings import Block, Flat

from robust_ensembles._strategy import current_strategy
from robust_ensembles.attacks import PGD
from robust_ensembles.attacks.engine.forward import frozen
from robust_ensembles.distributed.collectives import all_rows, own_rows, summed
from robust_ensembles.losses import member_cross_entropy
from robust_ensembles.modules import Ensemble
from robust_ensembles.speed.double_backward import fast_double_backward
from robust_ensembles.training import captured_embedding, features, input_gradients, replaced_output


def network():
    """Trains on a single sample, too: each normalisation sees several pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(),
        Block(3),
        Flat(),
        nn.Linear(48, 3),
    ).double()


def batch(n_rows):
    noise = torch.Generator().manual_seed(n_rows)
    x = torch.rand(n_rows, 1, 6, 6, generator=noise, dtype=torch.float64)
    return x, torch.arange(n_rows) % 3


def ensemble():
    torch.manual_seed(0)
    return Ensemble([network(), network()]).train()


def second_order(n_rows, fast=False):
    """Logits, input gradients, gradients of a loss of both, and where the statistics moved."""
    module, (x, y) = ensemble(), batch(n_rows)
    leaves = [x.clone().requires_grad_() for _ in module]
    with fast_double_backward(module if fast else nn.Identity()), current_strategy().shard(module):
        logits = module.member_logits(leaves)
        losses = member_cross_entropy(logits, y)
        g = input_gradients(losses, leaves)
    (losses.sum() + 1e3 * g.square().sum()).backward()
    current_strategy().sum_gradients(module, None)
    gradients = [p.grad for p in module.parameters()]
    return [logits.detach(), g.detach(), *gradients, *module.buffers(), *(v.grad for v in leaves)]


def crafted(n_rows, mode):
    """Adversarial examples of a batch, on the ensemble and on a member, and the statistics."""
    module, (x, y) = ensemble(), batch(n_rows)
    attack = PGD(eps=0.2, n_steps=4)
    with current_strategy().shard(module), frozen(module, mode):
        found = [attack.craft(t, x, y, box=(0.0, 1.0), seed=5) for t in (module, module[1])]
    return [*found, *module.buffers()]


def looked_into(n_rows):
    """What methods see of a layer's features, and what becomes of those that they replace."""
    module, (x, _) = ensemble(), batch(n_rows)
    member, weights = module[0], torch.linspace(0, 1, n_rows, dtype=torch.float64)
    with current_strategy().shard(module):
        seen = features(member, "3.bn1", x)
        with captured_embedding(member) as embeddings:
            logits = member(x)
        with replaced_output(member, "3", lambda own: own * weights.view(-1, 1, 1, 1)):
            mixed = member(x)
    (seen.square().sum() + embeddings[0].square().sum() + mixed.square().sum()).backward()
    current_strategy().sum_gradients(module, None)
    tensors = [seen, embeddings[0], logits, mixed]
    return [t.detach() for t in tensors] + [p.grad for p in member.parameters()]


def look():
    """All of these, by name."""
    made = {}
    for n_rows in (7, 1):
        made[f"second order, {n_rows}"] = second_order(n_rows)
        made[f"fast second order, {n_rows}"] = second_order(n_rows, fast=True)
        made[f"features, {n_rows}"] = looked_into(n_rows)
        for mode in ("train", "train_frozen_stats", "eval"):
            made[f"attack, {mode}, {n_rows}"] = crafted(n_rows, mode)
    return {name: [tensor.numpy() for tensor in tensors] for name, tensors in made.items()}


def check_derivatives():
    """Numerical derivatives, first and second, of the exchanges and of what is built from them."""
    ranks = current_strategy().ranks
    torch.manual_seed(0)
    whole = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        return all_rows(own_rows(x, ranks).sin(), len(x), ranks)

    def centred(x):
        own = own_rows(x, ranks)
        return all_rows(own * summed(own.square().sum(0), ranks).sqrt(), len(x), ranks)

    def logits(module, x):
        with current_strategy().shard(module):
            return module.member_logits(x)

    module, (x, _) = ensemble(), batch(3)
    for function, given in (
        (there_and_back, whole),
        (centred, whole),
        (centred, whole[:1]),
        (partial(logits, module), x.requires_grad_()),
    ):
        assert gradcheck(function, given, fast_mode=True)
        assert gradgradcheck(function, given, fast_mode=True)


def look_and_check():
    check_derivatives()
    return look()
