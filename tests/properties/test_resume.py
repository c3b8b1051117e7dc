"""Fits that were interrupted, and go on from their checkpoints to the same result."""

import errno
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from small_estimators import RaiseAt, every_class, make, make_full, same_weights
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CLDLEnsembleClassifier,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.persistence import load
from robust_ensembles.training import GaussianNoise, NoisyCopies


class WithDropout(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, n_classes)
        )


def small_convolutional(n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, n_classes)
    )


SETTINGS = {
    "module": WithDropout,
    "max_epochs": 4,
    "batch_size": 48,
    "lr_milestones": (2,),
    "augmentation": GaussianNoise(0.1),
    "train_split": 0.2,
}


def interrupted(steps, estimator, data, at):
    steps.interrupt(at)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(*data)
    steps.at = None
    return estimator


def same_history(first, second):
    def rows(estimator):
        left_out = ("dur", "batches")  # files hold rows of epochs only
        timeless = [{k: v for k, v in r.items() if k not in left_out} for r in estimator.history_]
        return json.dumps(timeless, default=float)

    return rows(first) == rows(second)


def same(first, second):
    states = [e.net_.optimizer_.state_dict()["state"] for e in (first, second)]
    moments = [[s[n] for s in state.values() for n in sorted(s)] for state in states]
    return (
        same_weights(first, second)
        and same_history(first, second)
        and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    )


# --- the same result ---------------------------------------------------------------------------


@every_class
def test_to_the_bit(data, reference, steps, tmp_path, cls):
    """Interrupted in the second, the third and the last epoch; 4 steps make an epoch."""
    expected = reference(cls, make=make_full, **SETTINGS)
    checkpointed = {**SETTINGS, "checkpoint_dir": tmp_path}
    for at in (6, 7, 6):
        interrupted(steps, make_full(cls, **checkpointed), data, at)
    steps.plan()
    resumed = make_full(cls, **checkpointed).fit(*data)
    assert steps.count == 4
    assert same(resumed, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizers(data, steps, tmp_path, optimizer):
    params = {"momentum": 0.9, "nesterov": True} if optimizer == "sgd" else {"amsgrad": True}
    settings = {**SETTINGS, "optimizer": optimizer, "optimizer_params": params}
    settings["lr"] = np.float64(0.01)
    expected = make(**settings).fit(*data)
    interrupted(steps, make(checkpoint_dir=tmp_path, **settings), data, 11)
    assert same(make(checkpoint_dir=tmp_path, **settings).fit(*data), expected)


def test_convolutions(digit_images, steps, tmp_path):
    """Laid out with the channels last while they train."""
    X, _, y, _ = digit_images
    settings = {"module": small_convolutional, "max_epochs": 3}
    expected = make(**settings).fit(X, y)
    interrupted(steps, make(checkpoint_dir=tmp_path, **settings), (X, y), 16)
    assert same(make(checkpoint_dir=tmp_path, **settings).fit(X, y), expected)


def test_label_confusion_model(data, reference, steps, tmp_path):
    expected = reference(CLDLEnsembleClassifier, **SETTINGS)
    settings = {**SETTINGS, "checkpoint_dir": tmp_path}
    interrupted(steps, make(CLDLEnsembleClassifier, **settings), data, 10)
    resumed = make(CLDLEnsembleClassifier, **settings).fit(*data)
    ours, theirs = (e.net_.auxiliary_.state_dict() for e in (resumed, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_memory_of_noisy_copies(data, steps, tmp_path):
    settings = {"augmentation": NoisyCopies(0.1), "max_epochs": 3, "module": WithDropout}
    expected = make(FASTENEnsembleClassifier, **settings).fit(*data)
    settings["checkpoint_dir"] = tmp_path
    interrupted(steps, make(FASTENEnsembleClassifier, **settings), data, 30)
    assert same(make(FASTENEnsembleClassifier, **settings).fit(*data), expected)


@pytest.mark.parametrize("seed", [None, "instance"])
def test_seed_is_kept(data, steps, tmp_path, seed):
    """Fits without a seed go on with the one they drew."""

    def state():
        return np.random.RandomState(3) if seed else None

    settings = {**SETTINGS, "checkpoint_dir": tmp_path}
    first = interrupted(steps, make(random_state=state(), **settings), data, 6)
    given = state()
    second = make(random_state=given, **settings).fit(*data)
    assert second.net_.seed == first.net_.seed
    assert np.array_equal(second.classes_, first.classes_)
    if seed:
        assert same(second, make(random_state=state(), **SETTINGS).fit(*data))
        following, once = given.randint(1000), state()
        once.randint(np.iinfo(np.int32).max)
        assert following == once.randint(1000)


def test_weights_of_samples(data, steps, tmp_path):
    weight = np.linspace(0, 1, len(data[0]))
    expected = make(**SETTINGS).fit(*data, weight)
    estimator = make(checkpoint_dir=tmp_path, **SETTINGS)
    steps.interrupt(7)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(*data, weight)
    with pytest.raises(ValueError, match="sample_weight differs"):
        estimator.fit(*data)
    assert same(estimator.fit(*data, weight), expected)


# --- callbacks ---------------------------------------------------------------------------------


class Peak(Callback):
    """What a schedule of a user's own might remember."""

    def on_train_begin(self, net, **kwargs):
        self.peak_ = np.float32(0)
        self.not_plain_ = object()

    def on_epoch_end(self, net, **kwargs):
        self.peak_ = max(self.peak_, np.float32(net.history[-1, "train_loss"]))
        net.history.record("peak", self.peak_)
        for group in net.optimizer_.param_groups:
            group["lr"] = float(self.peak_) / 100


class InTheGroups(Callback):
    """A schedule that remembers where it is in the optimizer itself."""

    def on_epoch_end(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            group["lr"] = 0.01 / group["seen"]


@pytest.mark.parametrize(
    "callback",
    [
        InTheGroups,
        lambda: LRScheduler("StepLR", step_size=2, gamma=0.1),
        lambda: LRScheduler("ReduceLROnPlateau", monitor="valid_acc", patience=0),
        lambda: LRScheduler(OneCycleLR, max_lr=0.1, total_steps=16, step_every="batch"),
        lambda: LRScheduler("LambdaLR", lr_lambda=lambda epoch: 1 / (1 + epoch)),
        Peak,
    ],
    ids=["groups", "steps", "plateau", "one cycle", "lambda", "own"],
)
def test_schedules(data, steps, tmp_path, callback):
    expected = make(callbacks=[callback()], **SETTINGS).fit(*data)
    settings = {**SETTINGS, "checkpoint_dir": tmp_path}
    for at in (6, 7):
        interrupted(steps, make(callbacks=[callback()], **settings), data, at)
    resumed = make(callbacks=[callback()], **settings).fit(*data)
    assert same(resumed, expected)
    rates = [[g["lr"] for g in e.net_.optimizer_.param_groups] for e in (resumed, expected)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("at", [6, None])
@pytest.mark.parametrize("load_best", [False, True])
def test_early_stopping(data, steps, tmp_path, at, load_best):
    settings = {**SETTINGS, "max_epochs": 30, "lr": 0.3}

    def stopping():
        quiet = {"load_best": load_best, "sink": lambda text: None}
        return [EarlyStopping(patience=3, threshold=0.1, **quiet)]

    expected = make(callbacks=stopping(), **settings).fit(*data)
    assert 3 < expected.n_iter_ < 30
    settings["checkpoint_dir"] = tmp_path
    first = make(callbacks=stopping(), **settings)
    if at is not None:
        interrupted(steps, first, data, 4 * (expected.n_iter_ - 2) + 2)
    assert same(first.fit(*data), expected)
    steps.plan()
    assert same(make(callbacks=stopping(), **settings).fit(*data), expected)
    assert steps.count == 0


def test_copies_of_the_net_write_no_checkpoints(data, tmp_path):
    kept = Checkpoint(f_pickle="net.pkl", dirname=tmp_path / "skorch", monitor=None)
    make(checkpoint_dir=tmp_path / "ours", callbacks=[kept], **SETTINGS).fit(*data)
    with open(tmp_path / "skorch" / "net.pkl", "rb") as file:
        net = pickle.load(file)
    added = {name: type(c) for name, c in net.callbacks_ if not isinstance(c, Checkpoint)}
    assert added["checkpoints"] is added["stop_on_sigterm"] is Callback


def test_nothing_is_left_in_the_net(data, reference, tmp_path):
    plain, kept = reference(**SETTINGS), make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    assert [n for n, _ in plain.net_.callbacks_] == [n for n, _ in kept.net_.callbacks_]
    assert same(plain, kept)


class WithClock(WithDropout):
    """A state that is more than tensors."""

    def get_extra_state(self):
        return object()

    def set_extra_state(self, state):
        pass


def test_state_that_could_not_be_read(data, tmp_path):
    make(**{**SETTINGS, "module": WithClock}).fit(*data)
    with pytest.raises(
        TypeError, match=r"_extra_state' .* is a builtins.object, which a file cannot"
    ):
        make(checkpoint_dir=tmp_path, **{**SETTINGS, "module": WithClock}).fit(*data)


@pytest.mark.parametrize("at", [None, 6])
@pytest.mark.parametrize("cls", [VanillaEnsembleClassifier, FASTENEnsembleClassifier])
def test_memory_is_freed_by_reference_counts(data, steps, tmp_path, cls, at):
    gc.collect()
    gc.disable()
    try:
        estimator = make(cls, checkpoint_dir=tmp_path, **SETTINGS)
        if at is not None:
            interrupted(steps, estimator, data, at)
        else:
            estimator.fit(*data)
        dead = [weakref.ref(estimator), weakref.ref(estimator.estimators_[0])]
        del estimator
        assert [reference() for reference in dead] == [None, None]
    finally:
        gc.enable()


# --- pretraining -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pretrained", "at", "random_state"),
    [(3, 15, 0), (3, 23, 0), (VanillaEnsembleClassifier, 6, 0), (3, 6, None)],
)
def test_pretrained(data, steps, tmp_path, pretrained, at, random_state):
    """Interrupted while the source trains (12 steps), in the first and in a later epoch."""

    def method(**params):
        source = make(**{**SETTINGS, "max_epochs": 3}) if pretrained != 3 else 3
        settings = {**SETTINGS, "pretrained": source, "random_state": random_state, **params}
        return make(DVERGEEnsembleClassifier, **settings)

    first = interrupted(steps, method(checkpoint_dir=tmp_path), data, at)
    steps.plan()
    resumed = method(checkpoint_dir=tmp_path).fit(*data)
    assert steps.count == {6: 8 + 16, 15: 16, 23: 8}[at]
    assert resumed.net_.seed == first.net_.seed
    if random_state == 0:
        expected = method().fit(*data)
        assert same(resumed, expected)
        assert same(resumed.pretrained_, expected.pretrained_)


# --- refused -----------------------------------------------------------------------------------


CHANGES = [
    ({"lr": 0.02}, "lr is 0.02 here and 0.01 there"),
    ({"max_epochs": 7}, "max_epochs is 7 here and 4 there"),
    ({"augmentation": GaussianNoise(0.2)}, "augmentation differs"),
    ({"train_split": ValidSplit(3)}, "train_split differs"),
    ({"train_split": ValidSplit(4)}, "train_split differs"),
    ({"callbacks": [EarlyStopping()]}, "callbacks differs"),
    ({"random_state": 1, "train_split": None}, "is 1 here and 0 there; train_split differs"),
    ({"attack": PGD(eps=0.02, n_steps=2)}, "attack differs"),
]


def test_other_parameters(data, tmp_path):
    settings = {**SETTINGS, "checkpoint_dir": tmp_path, "train_split": ValidSplit(5)}
    make(AdversarialEnsembleClassifier, **settings).fit(*data)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for change, message in CHANGES:
        with pytest.raises(ValueError, match=message) as info:
            make(AdversarialEnsembleClassifier, **{**settings, **change}).fit(*data)
        assert "a folder of its own" in str(info.value)
        assert str(tmp_path) in str(info.value)
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_other_data(data, tmp_path):
    X, y = data
    make(checkpoint_dir=tmp_path, **SETTINGS).fit(X, y)
    changed = X.copy()
    changed[7, 3] += 0.01
    for other, name in (((changed, y), "X"), ((X, y[::-1]), "y"), ((X[:-1], y[:-1]), "X")):
        with pytest.raises(ValueError, match=f"{name} differs"):
            make(checkpoint_dir=tmp_path, **SETTINGS).fit(*other)
    with pytest.raises(ValueError, match="classes differs"):
        make(checkpoint_dir=tmp_path, **SETTINGS).fit(X, y + 1)


def test_another_method(data, tmp_path):
    make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    with pytest.raises(ValueError, match=r"estimator is '.*CLDLE.* here and '.*VanillaE.* there"):
        make(CLDLEnsembleClassifier, checkpoint_dir=tmp_path, **SETTINGS).fit(*data)


def test_how_a_fit_is_run_may_change(data, steps, tmp_path, capsys):
    interrupted(steps, make(checkpoint_dir=tmp_path, **SETTINGS), data, 6)
    steps.plan()
    how = {"device": "auto" if not torch.cuda.is_available() else "cpu", "verbose": 1}
    resumed = make(checkpoint_dir=str(tmp_path), accelerate="none", **how, **SETTINGS).fit(*data)
    assert steps.count == 12
    assert not any(group["fused"] for group in resumed.net_.optimizer_.param_groups)
    assert "train_loss" in capsys.readouterr().out


def test_nothing_finished_is_no_reason_to_refuse(data, steps, tmp_path):
    interrupted(steps, make(checkpoint_dir=tmp_path, **SETTINGS), data, 2)
    other = {**SETTINGS, "lr": 0.02}
    resumed = make(checkpoint_dir=tmp_path, **other).fit(*data)
    assert same(resumed, make(**other).fit(*data))


def test_bad_module_leaves_no_trace(data, tmp_path):
    with pytest.raises(ValueError, match="resnet21"):
        make(module="resnet21", checkpoint_dir=tmp_path).fit(*data)
    assert list(tmp_path.iterdir()) == []


def test_without_fit(data, tmp_path):
    estimator = make(checkpoint_dir=tmp_path, warm_start=True)
    with pytest.raises(ValueError, match="set warm_start=False or checkpoint_dir=None"):
        estimator.fit(*data)
    with pytest.raises(ValueError, match="partial_fit keeps no checkpoints"):
        estimator.partial_fit(*data)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        make(checkpoint_dir=3).fit(*data)


def test_another_format(data, tmp_path, monkeypatch):
    make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    monkeypatch.setattr("robust_ensembles.state.model_file.FORMAT", 3)
    with pytest.raises(ValueError, match=r"has format version 2, .* reads 1 and 3.*install that"):
        make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)


def test_data_are_hashed_once(data, tmp_path, monkeypatch):
    """Also where processes that train together compare what they are about to do."""
    from robust_ensembles.estimators import base, identity

    calls, describe = [], base.describe_fit

    def counted(*args):
        calls.append(1)
        return describe(*args)

    monkeypatch.setattr(base, "describe_fit", counted)
    several = SimpleNamespace(
        is_single=False, check_same=lambda about, explain: calls.append(about["X"])
    )
    monkeypatch.setattr(identity, "current_strategy", lambda: several)
    make(checkpoint_dir=tmp_path, **{**SETTINGS, "max_epochs": 1}).fit(*data)
    assert len(calls) == 2  # one description, one comparison


# --- files -------------------------------------------------------------------------------------


def test_finished_fit_is_only_read(data, steps, tmp_path):
    expected = make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    steps.plan()
    read = make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    assert steps.count == 0
    assert same(read, expected)
    np.testing.assert_array_equal(read.predict_proba(data[0]), expected.predict_proba(data[0]))


@pytest.mark.parametrize("column", ["valid_loss", "train_loss"])
def test_best(data, tmp_path, column):
    settings = {**SETTINGS, "max_epochs": 8, "lr": 0.3}
    if column == "train_loss":
        settings["train_split"] = None
    estimator = make(checkpoint_dir=tmp_path, **settings).fit(*data)
    best = 1 + int(np.argmin(estimator.history_[:, column]))
    saved = load(tmp_path / "best.safetensors", module=WithDropout)
    assert saved.n_iter_ == best
    alone = make(**{**settings, "max_epochs": best}).fit(*data)
    assert same_weights(saved, alone)
    # of a finished fit the best and the last one
    assert {int(f.name[6:11]) for f in tmp_path.glob("epoch-*")} == {best, 8}


def test_altered_checkpoint(data, reference, steps, tmp_path):
    expected = reference(**SETTINGS)
    interrupted(steps, make(checkpoint_dir=tmp_path, **SETTINGS), data, 14)
    newest = max(tmp_path.glob("epoch-*"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 16
    newest.write_bytes(content)
    steps.plan()
    with pytest.warns(UserWarning, match=f"{newest.name} is skipped"):
        resumed = make(checkpoint_dir=tmp_path, **SETTINGS).fit(*data)
    assert steps.count == 8
    assert same(resumed, expected)


def test_full_disk(data, reference, tmp_path, monkeypatch):
    expected = reference(**SETTINGS)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:  # file and folder, of epochs 0 and 1
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    estimator = make(checkpoint_dir=tmp_path, **SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*Make room"):
            estimator.fit(*data)
    assert estimator.n_iter_ > 0
    assert np.isfinite(estimator.predict_proba(data[0])).all()
    assert same(estimator.fit(*data), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_killed_processes(name):
    """Every method, at random moments."""
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "24", "--signal", name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- SIGTERM -----------------------------------------------------------------------------------


def test_sigterm(data, reference, steps, tmp_path):
    """The step it comes in gets done; the next one does not begin."""
    expected = reference(**SETTINGS)
    estimator = make(checkpoint_dir=tmp_path, **SETTINGS)
    steps.plan(6, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as info:
        estimator.fit(*data)
    assert info.value.code == 143
    assert steps.count == 6
    assert estimator.n_iter_ == 1
    assert np.isfinite(estimator.predict_proba(data[0])).all()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert same(estimator.fit(*data), expected)


def test_sigterm_in_the_last_step(data, steps, tmp_path):
    """The epoch gets finished, with its checkpoint."""
    settings = {**SETTINGS, "train_split": None, "batch_size": 50, "checkpoint_dir": tmp_path}
    steps.plan(16, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        make(**settings).fit(*data)
    steps.plan()
    assert make(**settings).fit(*data).n_iter_ == 4
    assert steps.count == 0


def test_second_sigterm_stops_at_once(data, steps):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("raised within the step")

    steps.plan(6, twice)
    with pytest.raises(RuntimeError, match="within the step"):
        make(**SETTINGS).fit(*data)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# the name tells a worker of joblib's; it prints what it does in the one batch that it is granted
WORKER = """
import multiprocessing, os, signal, sys, time
multiprocessing.current_process().name = "LokyProcess-1"
import numpy as np
from skorch.callbacks import Callback
from small_estimators import make
from robust_ensembles import _system
_system._PAUSE = 0.05

class Batch(Callback):
    def on_batch_end(self, net, **kwargs):
        main = os.getppid()
        print("begun", flush=True)
        while os.getppid() == main:
            time.sleep(0.01)
        time.sleep(1)  # the watch has its say
        if sys.argv[1] == "watch first":
            signal.raise_signal(signal.SIGTERM)
        print("ended", flush=True)

rng = np.random.default_rng(0)
make(callbacks=[Batch()]).fit(rng.random((99, 4), np.float32), np.arange(99) % 3)
print("the fit is over", flush=True)
"""
# dies once the worker is amid its batch, whose output then goes on to the test
MAIN = """
import os, pathlib, signal, subprocess, sys, time
output, order, script = sys.argv[1:]
with open(output, "w") as file:
    worker = subprocess.Popen([sys.executable, "-c", script, order], stdout=file)
while not pathlib.Path(output).read_text():
    time.sleep(0.01)
if order == "cluster first":
    worker.send_signal(signal.SIGTERM)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a POSIX system")
@pytest.mark.parametrize("order", ["cluster first", "watch first"])
def test_one_end_that_is_asked_for_twice(order, tmp_path):
    """Of a worker and its main process, by a cluster: the batch gets done, and no other begins."""
    output = tmp_path / "output"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MAIN, str(output), order, WORKER]
    # the worker holds on to stderr: this returns when both have ended
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert output.read_text().split("\n")[:-1] == ["begun", "ended"], done.stderr


def test_handler_of_somebody_else_stays(data, steps):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *args: seen.append(args[0]))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        steps.plan(6, lambda: signal.raise_signal(signal.SIGTERM))
        assert make(**SETTINGS).fit(*data).n_iter_ == 4
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_threads_leave_signals_alone(data, steps):
    seen = []
    steps.plan(2, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    estimator = make(**SETTINGS)
    thread = threading.Thread(target=estimator.fit, args=data)
    thread.start()
    thread.join()
    assert estimator.n_iter_ == 4
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_handler_is_put_back_after_a_failure(data, error):
    with pytest.raises(error):
        make(callbacks=[RaiseAt("on_batch_end", error, call=3)]).fit(*data)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
