"""A loss of second order on members, one after the other or vectorized."""

import torch

from robust_ensembles.losses import gal_regularizer, member_cross_entropy
from robust_ensembles.training import input_gradients


def looped_logits(module, inputs):
    inputs = [inputs] * len(module) if isinstance(inputs, torch.Tensor) else inputs
    return torch.stack([member(x) for member, x in zip(module, inputs, strict=True)])


def gal_loss(logits_of, module, x, y):
    leaves = [x.clone().requires_grad_() for _ in module]
    losses = member_cross_entropy(logits_of(module, leaves), y)
    return losses.mean() + 0.5 * gal_regularizer(input_gradients(losses, leaves))
