"""Images made in feature space, once more in plain loops with derivatives by hand.

A `Member` has two layers to take features from, both linear: ``first`` and ``last``.
"""

import numpy as np
from naive_steps import BOX, B, D, embed, logits_of, make_step, member_arrays, samples

from robust_ensembles.training import derive_seed

LAYERS = ["first", "last"]
WALKS = [
    {"eps": 0.07, "step_size": 0.007, "n_steps": 10},
    {"eps": 0.2, "step_size": 0.06, "n_steps": 7},  # reaches the faces of the ball and the box
    {"eps": 0.5, "step_size": 0.1, "n_steps": 1},
]


def feature(member, layer, x):
    weight, bias, *_ = member_arrays(member)
    return weight @ x + bias if layer == "first" else logits_of(member, x)


def distance_gradient(member, layer, x, target):
    """Of the mean squared distance of the features from others, by the chain rule."""
    first, _, last, _ = member_arrays(member)
    difference = feature(member, layer, x) - target
    by_feature = 2 * difference / len(difference)
    if layer == "first":
        return first.T @ by_feature
    return first.T @ ((1 - embed(member, x) ** 2) * (last.T @ by_feature))


def clip(x, centre, eps):
    return np.clip(np.clip(x, centre - eps, centre + eps), *BOX)


def naive_distilled(step, layers, *, eps, step_size, n_steps):
    """The distilled image of each member for each sample."""
    result = np.zeros((len(step.module), B, D))
    for j, member in enumerate(step.module):
        for b, (x_source, _, _) in enumerate(samples(step)):
            target = feature(member, layers[j], step.batch.x_target[b].numpy())
            x, momentum = x_source.copy(), np.zeros(D)
            for _ in range(n_steps):
                g = distance_gradient(member, layers[j], x, target)
                momentum = momentum + g / np.abs(g).sum()
                x = clip(x - step_size * np.sign(momentum), x_source, eps)
            result[j, b] = x
    return result


def drawn_layer(step, schedule="epoch"):
    """One for all members, since all have the same two."""
    seed = step.epoch_seed if schedule == "epoch" else step.seed
    return LAYERS[int(2 * np.random.default_rng(derive_seed(seed, "layer")).random())]


def common(step):
    return [drawn_layer(step)] * len(step.module)


def epoch_seeds():
    """One for each layer."""
    by_layer = {drawn_layer(make_step(2, epoch_seed=seed)): seed for seed in range(8)}
    return [by_layer[layer] for layer in LAYERS]


EPOCH_SEEDS = epoch_seeds()
