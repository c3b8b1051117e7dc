"""Training by replayed steps: on a CPU with a stand-in for a CUDA graph."""

import pickle

import numpy as np
from torch import Tensor, nn, no_grad
from torch.utils._python_dispatch import TorchDispatchMode

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    DVERGEEnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.contrib.cuda_graph import Recorder, capture_rules, replayed_steps
from robust_ensembles.training import EnsembleNet

CRAFTING = (AdversarialEnsembleClassifier, CEATEnsembleClassifier)


class _Tape(TorchDispatchMode):
    """The operations of a computation, each with the very memory that it read and wrote."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":  # marks, by which optimizers show up in profiles
            self.calls.append((func, args, kwargs or {}, outputs))
        return outputs

    @no_grad()
    def replay(self):
        for func, args, kwargs, outputs in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_flat(outputs), _flat(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)


def _flat(outputs):
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [output for output in outputs if isinstance(output, Tensor)]


class TapeRecorder(Recorder):
    """Repeats operations on fixed memory: no line of Python, and no number of the host, is new."""

    def __init__(self):
        self.n_recordings = 0

    def warm_up(self, run):
        return run()

    def record(self, run):
        tape, outputs = _Tape(), []

        def replay():
            if tape.calls:
                tape.replay()
            else:  # a graph computes nothing while it is captured, a tape does
                self.n_recordings += 1
                with tape, capture_rules():
                    outputs.append(run())
            return outputs[0]

        return replay


class Replays:
    """What a net replays, from when on, and how often it had to record."""

    def __init__(self, monkeypatch, recorder):
        self.monkeypatch, self.numbers, self.recorder = monkeypatch, [], recorder

    def start(self):
        plain_step, plain_epochs = EnsembleNet.train_step, EnsembleNet.train_epochs

        def train_epochs(net, *args, objective, **kwargs):
            with replayed_steps(net, self.recorder) as net.replays_:
                plain_epochs(net, *args, objective=objective, **kwargs)
            assert pickle.loads(pickle.dumps(net.replays_)) is None  # a copy replays nothing
            del net.replays_

        def train_step(net, batch, *, number, meter):
            if not net.replays_.takes(batch):
                return plain_step(net, batch, number=number, meter=meter)
            self.numbers.append(number)
            return net.replays_(batch, int(net.attack_seeds_.integers(2**62)), meter)

        self.monkeypatch.setattr(EnsembleNet, "train_epochs", train_epochs)
        self.monkeypatch.setattr(EnsembleNet, "train_step", train_step)


def network(input_shape, n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(27, n_classes),
    )


def fitted(classifier, **params):
    """After 21 steps on batches of 32, but for the last of each epoch: 8."""
    rng = np.random.default_rng(0)
    X, labels = rng.random((200, 1, 8, 8)), rng.integers(0, 5, 200)
    settings = {
        "n_estimators": 3,
        "module": network,
        "max_epochs": 3,
        "batch_size": 32,
        "lr": 0.01,
        "device": "cpu",
        "random_state": 0,
    }
    if classifier in CRAFTING:
        settings["attack"] = PGD(eps=0.03, n_steps=2)
    if classifier is TRSEnsembleClassifier:
        settings.update(n_inner_steps=2, coeff=0.5)
    if classifier in (DVERGEEnsembleClassifier, LAFEDEnsembleClassifier):
        settings["n_steps"] = 2
    return classifier(**{**settings, **params}).fit(X, labels, sample_weight=rng.random(200))
