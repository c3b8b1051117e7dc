"""Every method learns the same, however its steps are made fast."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from small_estimators import CLASSES, every_class, make, make_full
from torch import nn

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    GALEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles._system import log_once
from robust_ensembles.training import TECHNIQUES, resolve_acceleration

CPU = torch.device("cpu")
ON_CPU = [name for name in TECHNIQUES if name != "cuda_graph"]


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=2, dilation=2, groups=2)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=stride)

    def forward(self, x):
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Float64; a convolution of each kind, batch normalisation of both, pooling."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.body = nn.Sequential(Block(input_shape[0], 4, 1), nn.MaxPool2d(2), Block(4, 6, 2))
        self.embedding = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.classifier = nn.Linear(5, n_classes)
        self.double()

    def forward(self, x):
        x = self.embedding(self.body(x).mean(dim=(2, 3)))
        return self.classifier(torch.relu(self.norm(x)))


def images(n):
    rng = np.random.default_rng(0)
    return rng.random((n, 1, 8, 8), dtype=np.float32), np.arange(n) % 5


def trained(cls, accelerate, *, n, epochs, **params):
    X, y = images(n)
    settings = {
        "module": ResidualNet,
        "optimizer": "sgd",
        "optimizer_params": {"momentum": 0.9},
        "batch_size": 16,
        "max_epochs": epochs,
        "n_estimators": 3,
    }
    return make_full(cls, accelerate=accelerate, **{**settings, **params}).fit(X, y)


def assert_close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradients(estimator):
    return [p.grad for p in estimator.module_.parameters()]


@every_class
def test_a_step_is_that_of_plain_torch(cls):
    plain, fast = (trained(cls, a, n=16, epochs=1) for a in ("none", "auto"))
    assert fast.net_.techniques > {"channels_last", "fused_optimizer"}
    assert plain.net_.techniques == frozenset()
    for term in plain.history_[-1]:
        if term.startswith("train_") and isinstance(plain.history_[-1, term], float):
            assert plain.history_[-1, term] == pytest.approx(fast.history_[-1, term], abs=1e-10)
    assert_close(gradients(fast), gradients(plain), 1e-10)
    buffers = [dict(clf.module_.named_buffers()) for clf in (fast, plain)]
    assert_close(*buffers, 1e-10)


@every_class
def test_twenty_steps_are_those_of_plain_torch(cls):
    plain, fast = (trained(cls, a, n=160, epochs=2) for a in ("none", "auto"))
    assert_close(fast.module_.state_dict(), plain.module_.state_dict(), 1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cls", CLASSES)
def test_twenty_steps_on_cuda_are_those_of_plain_torch(cls):
    options = {"n": 160, "epochs": 2, "device": "cuda"}
    plain, fast = (trained(cls, a, **options) for a in ("none", "auto"))
    assert_close(fast.module_.state_dict(), plain.module_.state_dict(), 1e-8)


@pytest.mark.parametrize("technique", ON_CPU)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_technique_alone(technique, optimizer):
    options = {"optimizer": optimizer, "optimizer_params": None, "n": 48, "epochs": 2}
    plain, fast = (trained(GALEnsembleClassifier, a, **options) for a in ("none", technique))
    assert fast.net_.techniques == {technique}
    assert_close(fast.module_.state_dict(), plain.module_.state_dict(), 1e-8)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_warm_start_goes_on_as_plain_torch_does(optimizer):
    options = {"optimizer": optimizer, "optimizer_params": None, "warm_start": True}
    fits = [
        trained(VanillaEnsembleClassifier, a, n=32, epochs=1, **options) for a in ("none", "auto")
    ]
    X, y = images(32)
    for clf in fits:
        clf.fit(X, y)
    assert_close(fits[1].module_.state_dict(), fits[0].module_.state_dict(), 1e-8)


def test_the_ensemble_is_left_as_torch_makes_it():
    options = {"optimizer": "adam", "optimizer_params": None}
    clf = trained(GALEnsembleClassifier, "auto", n=32, epochs=1, **options)
    for layer in clf.module_.modules():
        assert "forward" not in vars(layer)
    for parameter in clf.module_.parameters():
        assert parameter.is_contiguous()
        for value in clf.net_.optimizer_.state[parameter].values():
            assert value.is_contiguous()


def subnormals_survive():
    return bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2 != 0)


def test_subnormal_numbers_are_flushed_in_the_fit_alone():
    seen: list[bool] = []

    class Watched(ResidualNet):
        def forward(self, x):
            seen.append(subnormals_survive())
            return super().forward(x)

    assert subnormals_survive()
    trained(VanillaEnsembleClassifier, "auto", n=16, epochs=1, module=Watched)
    assert subnormals_survive()
    assert not any(seen[-3:])
    torch.set_flush_denormal(True)
    try:
        trained(VanillaEnsembleClassifier, "auto", n=16, epochs=1)
        assert not subnormals_survive()
    finally:
        torch.set_flush_denormal(False)


@every_class
def test_bfloat16_learns_about_the_same(cls):
    settings = {"n": 48, "epochs": 2, "module": "lenet5", "optimizer": "adam"}
    settings |= {"optimizer_params": None, "lr": 0.001}
    full, mixed = (trained(cls, "auto", precision=p, **settings) for p in ("float32", "bfloat16"))
    assert all(p.dtype == torch.float32 for p in mixed.module_.parameters())
    losses = [clf.history_[-1, "train_loss"] for clf in (full, mixed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.2, abs=0.2)
    X, _ = images(48)
    assert mixed.as_module()(torch.from_numpy(X)).dtype == torch.float32


def test_vectorized_members_in_bfloat16():
    options = {"n": 32, "epochs": 1, "module": "lenet5", "precision": "bfloat16"}
    one, all_at_once = (trained(VanillaEnsembleClassifier, a, **options) for a in ("none", "vmap"))
    assert_close(all_at_once.module_.state_dict(), one.module_.state_dict(), 1e-3)


def test_members_that_cannot_be_vectorized_are_told_once(caplog):
    log_once.cache_clear()
    with caplog.at_level("INFO", "robust_ensembles"):
        trained(VanillaEnsembleClassifier, "vmap", n=16, epochs=1, n_estimators=1)
    assert "'vmap' is not used, since there is one member only" in caplog.text


def test_scores_during_training_are_not_in_bfloat16():
    errors = []

    class Probe(Callback):
        def on_epoch_end(self, net, **kwargs):
            probe = torch.rand(4, 1, 8, 8)
            exact = copy.deepcopy(net.module_[0]).double()
            with torch.no_grad():
                difference = net.module_[0](probe) - exact(probe.double())
            errors.append(float(difference.abs().max()))

    X, y = images(16)
    net = make(module="lenet5", precision="bfloat16", callbacks=[Probe()], max_epochs=1)
    net.fit(X, y)
    assert errors[0] < 1e-5  # in bfloat16 about 1e-2
    assert "forward" not in vars(net.module_[0])


def test_what_auto_is_on_each_device():
    always = {"fused_optimizer"}
    on_cpu = always | {"channels_last", "flush_denormal"}
    assert resolve_acceleration("auto", CPU, second_order=False) == on_cpu
    assert resolve_acceleration("auto", CPU, second_order=True) == {*on_cpu, "double_backward"}
    cuda = torch.device("cuda")
    assert resolve_acceleration("auto", cuda, second_order=False) == always
    assert resolve_acceleration("auto", cuda, second_order=True) == {*always, "double_backward"}
    assert not resolve_acceleration("none", cuda, second_order=True)


def test_names_are_checked_before_training():
    X, y = images(8)
    for wrong, message in [
        (["chanels_last"], "Did you mean 'channels_last'"),
        (["auto", "vmap"], "accelerate, if neither .* must be one of"),
        (["auto"], "must be one of"),
        ("cuda_graph", "needs a CUDA device"),
        ("fast", "The 'accelerate' parameter"),
    ]:
        clf = make(AdversarialEnsembleClassifier, accelerate=wrong)
        with pytest.raises(ValueError, match=message):
            clf.fit(X, y)
        assert not hasattr(clf, "net_")


@pytest.mark.parametrize("option", ["foreach", "fused", "differentiable"])
def test_the_users_own_kind_of_optimizer_step_is_kept(option):
    clf = trained(
        VanillaEnsembleClassifier,
        "auto",
        n=16,
        epochs=1,
        optimizer="adam",
        optimizer_params={option: False},
    )
    assert not clf.net_.optimizer_.defaults["fused"]
