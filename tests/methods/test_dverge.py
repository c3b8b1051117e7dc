"""DVERGE: the distilled images, and its whole objective."""

import numpy as np
import pytest
from feature_steps import EPOCH_SEEDS, LAYERS, WALKS, common, feature, naive_distilled
from naive_equations import FORMULATIONS
from naive_steps import build, check, check_backward, cross_entropies, make_step, objective

from robust_ensembles import DVERGEEnsembleClassifier


def naive_dverge(step, images):
    """Each member learns the labels of the images of all others."""
    total = 0.0
    for j in range(len(step.module)):
        losses = cross_entropies(step, images[j])
        total += sum(loss for i, loss in enumerate(losses) if i != j)
    return {"distilled_cross_entropy": total}


def dverge(step, **params):
    return objective(DVERGEEnsembleClassifier, step, **params)


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_objective(n_members, weighted, epoch_seed, walk):
    step = make_step(n_members, weighted=weighted, epoch_seed=epoch_seed)
    images = naive_distilled(step, common(step), **walk)
    assert np.abs(images - step.x.numpy()).max() <= walk["eps"] + 1e-12
    check(dverge(step, **walk), naive_dverge(step, images))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_defaults(formulation):
    """0.07, 10 steps of 0.007; code and formula agree."""
    step = make_step(3)
    images = naive_distilled(step, common(step), **WALKS[0])
    check(dverge(step, formulation=formulation), naive_dverge(step, images))


def test_layers_of_each_member():
    step, layers = make_step(3), ["last", "first", "last"]
    images = naive_distilled(step, layers, **WALKS[1])
    found = dverge(step, layers=[[layer] for layer in layers], **WALKS[1])
    check(found, naive_dverge(step, images))


@pytest.mark.parametrize("layer", LAYERS)
def test_distilled_images_have_the_features_of_others(layer):
    """What they are for."""
    step = make_step(3)
    images = naive_distilled(step, [layer] * 3, eps=0.4, step_size=0.02, n_steps=20)
    found = build(DVERGEEnsembleClassifier, eps=0.4, step_size=0.02, n_steps=20, layers=[layer])
    for image, expected in zip(found._distill(step), images, strict=True):
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-12)
        assert not image.requires_grad
    for j, member in enumerate(step.module):
        wanted = [feature(member, layer, x) for x in step.batch.x_target.numpy()]
        before, after = (
            sum(
                np.sum((feature(member, layer, x) - w) ** 2)
                for x, w in zip(rows, wanted, strict=True)
            )
            for rows in (step.x.numpy(), images[j])
        )
        assert after < before / 2


@pytest.mark.parametrize("n_members", [2, 3])
def test_slope(n_members):
    """The images are constants, found by signs."""
    step = make_step(n_members, weighted=True)
    check_backward(build(DVERGEEnsembleClassifier, n_members)._objective, step)
