"""What the benchmarks of training train: methods, networks, batches, and one step of each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CLDLEnsembleClassifier,
    GALEnsembleClassifier,
    NCEnEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.estimators.base import BaseEnsembleClassifier
from robust_ensembles.modules import CifarResNet, LabelConfusionModel, LeNet5
from robust_ensembles.speed import accelerated
from robust_ensembles.training import Batch, preserve_global_rng
from robust_ensembles.training.epoch import EpochMeter

from ._released_steps import RELEASED, ReleasedStep

N_CLASSES = 10
# of the codes that CLDL, GAL and ADP were released in
LR = 1e-3
OPTIMIZER: dict[str, Any] = {"weight_decay": 1e-4, "eps": 1e-7}
METHODS: dict[str, type[BaseEnsembleClassifier]] = {
    "vanilla": VanillaEnsembleClassifier,
    "adversarial": AdversarialEnsembleClassifier,
    "adp": ADPEnsembleClassifier,
    "gal": GALEnsembleClassifier,
    "ncen": NCEnEnsembleClassifier,
    "cldl": CLDLEnsembleClassifier,
}
PGD_STEPS = 10


@dataclass(frozen=True)
class Network:
    """A network, and the batches that it is trained on.

    Parameters
    ----------
    module : type
    input_shape : tuple of int
    batch_size : int
    params : dict, default={}
        Of the module.
    """

    module: type[torch.nn.Module]
    input_shape: tuple[int, ...]
    batch_size: int
    params: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "resnet20": Network(CifarResNet, (3, 32, 32), 64, {"depth": 20}),
    "resnet8": Network(CifarResNet, (3, 16, 16), 32, {"depth": 8}),
    "lenet5": Network(LeNet5, (1, 28, 28), 128),
    # for tests
    "tiny": Network(CifarResNet, (1, 8, 8), 6, {"depth": 8, "width": 2}),
}


def make_estimator(
    method: str,
    network: Network,
    *,
    accelerate: Any = "auto",
    n_steps: int = PGD_STEPS,
    **params: Any,
) -> BaseEnsembleClassifier:
    """An ensemble of three, trained as its released code trains it.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    network : Network
    accelerate : str or list of str, default="auto"
    n_steps : int, default=10
        Of PGD, where the method has an attack.
    **params
        Further parameters of the estimator.
    """
    module_params = dict(network.params)
    settings: dict[str, Any] = {}
    if method in ("gal", "ncen", "cldl"):
        settings["formulation"] = "released"
        # the released LeNet keeps its ReLUs
        module_params["activation"] = "relu" if network.module is LeNet5 else "leaky_relu"
    if method == "cldl":
        module_params["embedding_size"] = 64
    if method == "adversarial":
        # batch statistics, which the iterates move: what the released loop does
        attack = PGD(eps=8 / 255, step_size=2 / 255, n_steps=n_steps, loss="cross_entropy")
        settings = {"attack": attack, "formulation": "released"}
    settings |= {
        "module": network.module,
        "module_params": module_params,
        "n_estimators": 3,
        "lr": LR,
        "optimizer_params": OPTIMIZER,
        "batch_size": network.batch_size,
        "max_epochs": 1,
        "clip_values": (0.0, 1.0),
        "device": "cpu",
        "random_state": 0,
        "accelerate": accelerate,
    }
    return METHODS[method](**{**settings, **params})


def random_images(
    network: Network, n_samples: int, *, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of noise in [0, 1], with labels in turns: enough to take the time."""
    generator = np.random.default_rng(seed)
    X = generator.random((n_samples, *network.input_shape), dtype=np.float32)
    return X, np.arange(n_samples, dtype=np.int64) % N_CLASSES


def random_batch(network: Network, *, seed: int = 1, device: str = "cpu") -> Batch:
    """One mini-batch of such images."""
    X, y = (
        torch.from_numpy(part).to(device)
        for part in random_images(network, network.batch_size, seed=seed)
    )
    return Batch(X, y, None, torch.arange(len(X), device=device))


class OwnStep:
    """Training steps of an estimator's own net, under what makes them fast.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        Fitted here on a few samples, so that everything is set up.
    network : Network
        What it is an ensemble of.
    """

    def __init__(self, estimator: BaseEnsembleClassifier, network: Network) -> None:
        self.estimator = estimator.fit(*random_images(network, 2 * N_CLASSES))
        self.net = net = estimator.net_
        # for good: what is recorded for replay serves all runs
        self._replaying = ExitStack()
        self._replayed = self._replaying.enter_context(net.replaying())

    def run(self, batches: Sequence[Batch]) -> list[Tensor]:
        """One step for each batch; returns the losses."""
        net = self.net
        modules = [getattr(net, f"{name}_") for name in net._modules]
        net.objective_, net.replayed_ = self.estimator._objective, self._replayed
        try:
            with preserve_global_rng(), accelerated(net.techniques, modules, net.optimizer_):
                net._begin_epoch(0, training=True)
                return [self._step(batch) for batch in batches]
        finally:
            net.objective_ = net.replayed_ = None

    def _step(self, batch: Batch) -> Tensor:
        meter = EpochMeter("train", 0, immediate=True)
        loss: Tensor = self.net.train_step(batch, number=0, meter=meter)["loss"]
        return loss

    def released(self, method: str, **params: Any) -> ReleasedStep:
        """The released step on a copy of the members (and of the label confusion model)."""
        members = copy.deepcopy(list(self.net.module_))
        auxiliary = copy.deepcopy(self.net.auxiliary_) if self.net.has_auxiliary_ else None
        assert auxiliary is None or isinstance(auxiliary, LabelConfusionModel)
        for member in members:
            member.train()
        return RELEASED[method](members, _adam, auxiliary, **params)


def _adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LR, **OPTIMIZER)
