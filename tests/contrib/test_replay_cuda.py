"""CUDA graphs and vmapped members on a GPU: the same numbers, fewer launches."""

import copy
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from members import gal_loss, looped_logits
from replaying import Replays, fitted, network
from torch import nn

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    GALEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks.engine.ascent import Objective
from robust_ensembles.contrib.cuda_graph import CudaGraphRecorder, Replayed
from robust_ensembles.contrib.vmap import vectorized_logits
from robust_ensembles.modules import Ensemble

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def recorder():
    return CudaGraphRecorder(torch.device("cuda"))


@pytest.fixture
def members():
    """Three small convolutional networks, a batch, and labels, on the GPU."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        ensemble = Ensemble([network((1, 8, 8), 5) for _ in range(3)])
        x, y = torch.rand(16, 1, 8, 8), torch.randint(5, (16,))
    return ensemble.cuda(), x.cuda(), y.cuda()


def n_launches(function, *inputs):
    """Kernels that the processor launches one by one; a graph's come all at once."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the profiler itself
        with torch.profiler.profile(activities=activities) as profile:
            function(*inputs)
            torch.cuda.synchronize()
        events = profile.key_averages()
    return sum(event.count for event in events if "LaunchKernel" in event.key)


@pytest.mark.parametrize(
    "classifier",
    [VanillaEnsembleClassifier, GALEnsembleClassifier, AdversarialEnsembleClassifier],
)
def test_replayed_training_is_that_of_plain_steps(classifier, recorder, monkeypatch):
    params = {"device": "cuda", "optimizer": "sgd", "lr": 0.05, "lr_milestones": (1,)}
    plain = fitted(classifier, **params)
    replays = Replays(monkeypatch, recorder)
    replays.start()
    replayed = fitted(classifier, **params)
    assert replays.numbers == [0, 1, 2, 3, 4, 5] * 3
    assert plain.history_[:, "train_loss"] == pytest.approx(
        replayed.history_[:, "train_loss"], rel=1e-5
    )
    for (name, expected), found in zip(
        plain.module_.state_dict().items(), replayed.module_.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_an_estimator_that_is_asked_for_graphs(caplog):
    params = {"device": "cuda", "optimizer": "sgd", "lr": 0.05}
    plain = fitted(GALEnsembleClassifier, **params)
    with caplog.at_level(logging.WARNING, "robust_ensembles"):
        replayed = fitted(GALEnsembleClassifier, accelerate=["cuda_graph"], **params)
    assert not caplog.records
    assert plain.history_[:, "train_loss"] == pytest.approx(
        replayed.history_[:, "train_loss"], rel=1e-5
    )


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_counts_in_the_graph_and_goes_on_without(optimizer, recorder, monkeypatch):
    params = {"device": "cuda", "optimizer": optimizer, "lr": 0.001}
    plain = fitted(VanillaEnsembleClassifier, **params)
    with monkeypatch.context() as patched:
        Replays(patched, recorder).start()
        replayed = fitted(VanillaEnsembleClassifier, **params)
    assert plain.history_[:, "train_loss"] == pytest.approx(
        replayed.history_[:, "train_loss"], rel=1e-3
    )
    optimizer = replayed.net_.optimizer_
    assert not any(group["capturable"] for group in optimizer.param_groups)
    assert {int(state["step"]) for state in optimizer.state.values()} == {21}
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    replayed.partial_fit(x, [0, 1, 2, 3, 4] * 8)


def test_a_replay_launches_next_to_nothing(recorder, members):
    ensemble, x, y = members

    def gradients(x, y):
        loss = gal_loss(looped_logits, ensemble, x, y)
        return torch.autograd.grad(loss, list(ensemble.parameters()))

    replayed = Replayed(gradients, recorder)
    for _ in range(4):
        replayed(x, y)
    state = copy.deepcopy(ensemble.state_dict())
    found = replayed(x, y)
    ensemble.load_state_dict(state)
    torch.testing.assert_close(found, gradients(x, y), rtol=1e-4, atol=1e-6)
    # what is left are the copies of arguments and results
    assert n_launches(replayed, x, y) < n_launches(gradients, x, y) / 4


def test_a_replay_sees_new_arguments_and_weights(recorder, members):
    ensemble, x, _ = members
    ensemble.eval().requires_grad_(False)
    logits = Replayed(ensemble.member_logits, recorder)
    for _ in range(4):
        logits(x)
    for scale in (0.5, 2.0):
        for parameter in ensemble.parameters():
            parameter.mul_(scale)
        expected = ensemble.member_logits(scale * x)
        torch.testing.assert_close(logits(scale * x), expected, rtol=1e-4, atol=1e-6)


def test_an_attack_of_any_number_of_samples(recorder, members):
    ensemble, x, y = members
    objective = Objective(ensemble.eval().requires_grad_(False), "margin")
    replayed = Replayed(objective.evaluate, recorder, buckets=True)
    for n in [16] * 4 + [9, 12, 16, 11, 10, 9, 3]:
        found, expected = replayed(x[:n], y[:n]), objective.evaluate(x[:n], y[:n])
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.broken, expected.broken)


def test_dropout_draws_anew_in_each_replay_and_follows_the_seed(recorder):
    x = torch.ones(1000, device="cuda")
    drop = Replayed(lambda x: F.dropout(x, 0.5), recorder)
    with torch.random.fork_rng([torch.cuda.current_device()]):
        for _ in range(4):
            drop(x)
        torch.manual_seed(5)
        first, second = drop(x), drop(x)
        torch.manual_seed(5)
        assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_a_capture_that_fails_leaves_a_usable_device(recorder, caplog):
    scaled = Replayed(lambda x: x * x.sum().item(), recorder)
    stream = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING, "robust_ensembles"):
        for value in range(6):
            x = torch.full((2,), float(value), device="cuda")
            assert torch.equal(scaled(x), 2 * x.square())
    assert len(caplog.records) == 1
    assert torch.cuda.current_stream() == stream
    with torch.random.fork_rng([torch.cuda.current_device()]):
        assert F.dropout(torch.ones(100, device="cuda")).sum() > 0
    torch.cuda.empty_cache()


@pytest.mark.parametrize("training", [True, False])
def test_vectorized_members_on_a_gpu(members, training):
    ensemble, x, y = members
    ensemble.double().train(training)
    x, found = x.double(), []
    for logits_of in (looped_logits, vectorized_logits):
        module = copy.deepcopy(ensemble)
        gal_loss(logits_of, module, x, y).backward()
        found.append(([p.grad for p in module.parameters()], module.state_dict()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_vectorized_members_launch_less(members):
    _, x, y = members
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        nets = [nn.Sequential(network(None, 5), nn.Linear(5, 5)) for _ in range(8)]
    ensemble = Ensemble(nets).cuda()

    def step(logits_of):
        gal_loss(logits_of, ensemble, x, y).backward()

    for logits_of in (looped_logits, vectorized_logits):
        step(logits_of)
    assert n_launches(step, vectorized_logits) < 0.75 * n_launches(step, looped_logits)
