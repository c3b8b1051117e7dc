"""Callbacks that raise, disks that fill up, and folders that are in use."""

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from small_estimators import covered, make, make_full, same_weights
from torch import nn

from robust_ensembles import (
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
)
from robust_ensembles.inspection import RobustnessReport, robustness_report
from robust_ensembles.persistence import load
from robust_ensembles.training import GaussianNoise, locked

# --- callbacks ---------------------------------------------------------------------------------

# from features, with a memory, and by an attack
CRAFTING = [DVERGEEnsembleClassifier, FASTENEnsembleClassifier, CEATEnsembleClassifier]
EVENTS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_grad_computed",
    "on_batch_end",
    "on_epoch_end",
    "on_train_end",
]


class OnPurposeError(Exception):
    """Of a callback."""


class Raises(Callback):
    """Raises at one call of one event."""

    def __init__(self, event, error, call):
        calls = itertools.count(1)

        # a count of its own would tell it from another one, and so one fit from another
        def raise_once(net, **kwargs):
            if next(calls) == call:
                raise error

        setattr(self, event, raise_once)


class Convolutional(nn.Sequential):
    """What acceleration takes hold of: convolutions, BatchNorm, rectifiers."""

    def __init__(self, n_classes):
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(144, n_classes),
        )


def global_state():
    return (
        torch.get_rng_state().tolist(),
        repr(np.random.mtrand._rand.get_state()),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        torch.is_grad_enabled(),
        bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2 == 0),
        torch.get_num_threads(),
    )


def left_behind(estimator):
    """What training puts into a net for its own time."""
    net = estimator.net_
    for name in net._modules:
        for layer in getattr(net, f"{name}_").modules():
            assert not layer.training
            assert "forward" not in vars(layer)
            assert not {**layer._forward_hooks, **layer._forward_pre_hooks, **layer._backward_hooks}
            if isinstance(layer, nn.Conv2d):
                assert layer.weight.is_contiguous()
            assert all(weight.requires_grad for weight in layer.parameters())
    assert not {"checkpoints", "stop_on_sigterm"} & {name for name, _ in net.callbacks_}
    assert net.objective_ is net.last_good_ is net.replayed_ is None


def whole(history):
    columns = [set(row) - {"batches"} for row in history]
    return all(c == columns[0] for c in columns) and all("dur" in row for row in history)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        *((event, OnPurposeError) for event in EVENTS),
        *((event, KeyboardInterrupt) for event in EVENTS if event.startswith("on_train")),
        *((event, KeyboardInterrupt) for event in ("on_batch_end", "on_epoch_end")),
        ("on_batch_end", SystemExit),
    ],
)
def test_callback_that_raises(data, reference, event, error, tmp_path):
    """In the second epoch of 4 steps each, where the event has one."""
    raised = error("on purpose")
    call = {"on_train_begin": 1, "on_train_end": 1}.get(event, 2 if "epoch" in event else 6)
    settings = {"module": Convolutional, "batch_size": 50, "max_epochs": 3, "n_estimators": 2}
    callback = Raises(event, raised, call)
    estimator = make(CLDLEnsembleClassifier, callbacks=[callback], **settings)
    before = global_state()
    with pytest.raises(error) as info:
        estimator.fit(*data)
    assert info.value is raised
    assert info.value.__cause__ is info.value.__context__ is None
    assert global_state() == before
    left_behind(estimator)
    finished = {"on_train_begin": 0, "on_train_end": 3, "on_epoch_end": 2}.get(event, 1)
    assert estimator.n_iter_ == finished
    assert whole(estimator.history_)
    assert np.isfinite(estimator.predict_proba(data[0])).all()
    estimator.save(tmp_path / "saved")
    assert same_weights(load(tmp_path / "saved", module=Convolutional, callbacks=None), estimator)
    again = estimator.fit(*data)  # the callback has raised for the last time
    assert same_weights(again, reference(CLDLEnsembleClassifier, **settings))


@pytest.mark.parametrize("cls", covered([GALEnsembleClassifier, *CRAFTING]))
def test_attacks_and_copies_of_forwards(data, cls):
    """Interrupted within a step; with BatchNorm, so that the attacks' modes are told apart."""
    settings = {"module": Convolutional, "batch_size": 50}
    raising = Raises("on_grad_computed", OnPurposeError(), 6)
    estimator = make_full(cls, callbacks=[raising], **settings)
    before = global_state()
    with pytest.raises(OnPurposeError):
        estimator.fit(*data)
    assert global_state() == before
    left_behind(estimator)
    assert estimator.n_iter_ == 1
    assert same_weights(estimator.fit(*data), make_full(cls, **settings).fit(*data))


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end"])
def test_checkpoints_outlive_a_callback(data, tmp_path, event):
    settings = {"module": Convolutional, "max_epochs": 3, "augmentation": GaussianNoise(0.1)}
    raising = Raises(event, OnPurposeError(), 9 if event == "on_batch_end" else 2)
    estimator = make(checkpoint_dir=tmp_path, callbacks=[raising], **settings)
    with pytest.raises(OnPurposeError):
        estimator.fit(*data)
    assert len(list(tmp_path.glob("epoch-00001.*"))) == 1
    estimator.fit(*data)
    assert same_weights(estimator, make(**settings).fit(*data))


# --- full disks --------------------------------------------------------------------------------

SIZE = 2**20
LARGE = {"module_params": {"hidden_sizes": (300,)}, "n_estimators": 3}  # 270 kB of weights
HUGE = {"module_params": {"hidden_sizes": (2000,)}, "n_estimators": 3}  # 1.8 MB


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte, where this user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def limited_files(size=SIZE):
    """Files of this process cannot become larger: the kernel refuses."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(disk, leave=0):
    """Take all space but so many bytes."""
    with (disk / "filling").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(max(0, file.tell() - leave))


def files(folder):
    """Contents by name, temporary files included."""
    found = {path.name: path for path in folder.iterdir() if path.is_file()}
    return {name: found[name].read_bytes() for name in found.keys() - {"filling", ".lock"}}


class FillDisk(Callback):
    """Fills the disk once, at the end of an epoch, before the checkpoint is written."""

    def __init__(self, disk, epoch):
        self.disk, self.epoch = disk, epoch

    def on_epoch_end(self, net, **kwargs):
        once = self.disk.with_name("was full")
        if len(net.history) == self.epoch and not once.exists():
            once.touch()
            self.before_ = files(self.disk / "run")
            fill(self.disk, leave=8192)


def test_checkpoint_on_a_full_disk(data, small_disk):
    run = small_disk / "run"
    expected = make(max_epochs=4).fit(*data)
    filling = FillDisk(small_disk, epoch=3)
    estimator = make(max_epochs=4, checkpoint_dir=run, callbacks=[filling])
    with pytest.raises(OSError, match=r"checkpoint of epoch 3 .*No space left on device") as info:
        estimator.fit(*data)
    assert info.value.errno == errno.ENOSPC
    assert "Make room" in str(info.value)
    assert files(run) == filling.before_
    left_behind(estimator)
    assert estimator.n_iter_ == 3
    assert same_weights(estimator, make(max_epochs=3).fit(*data))
    (small_disk / "filling").unlink()
    resumed = make(max_epochs=4, checkpoint_dir=run, callbacks=[FillDisk(small_disk, epoch=3)])
    assert same_weights(resumed.fit(*data), expected)
    assert not [name for name in files(run) if name.endswith(".tmp")]


def test_first_checkpoint_on_a_full_disk(data, small_disk):
    """Nothing is trained for nothing: the first one is written before."""
    fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        make(checkpoint_dir=small_disk / "run").fit(*data)
    (small_disk / "filling").unlink()
    assert make(checkpoint_dir=small_disk / "run").fit(*data).n_iter_ == 2


def test_save_on_a_full_disk(data, small_disk):
    path = small_disk / "model"
    former = make(**LARGE).fit(*data)
    former.save(path)
    before = files(small_disk)
    with pytest.raises(
        OSError, match=r"model cannot be written \(No space.*before is kept"
    ) as info:
        make(**HUGE).fit(*data).save(path)
    assert info.value.errno == errno.ENOSPC
    assert files(small_disk) == before
    assert same_weights(load(path), former)
    path.unlink()
    with pytest.raises(OSError, match="no part of it is left"):
        make(**HUGE).fit(*data).save(path)
    assert files(small_disk) == {}


def test_report_on_a_full_disk(digit_rows, small_disk):
    _, X, _, y = digit_rows
    clf = make().fit(X, y)
    path = small_disk / "report.json"
    options = {"eps": 0.05, "sanity_checks": False, "path": path}
    first = robustness_report(clf, X, y, ["fgsm"], **options)
    fill(small_disk)
    before = files(small_disk)
    with pytest.raises(OSError, match=r"report.json cannot be written \(No space") as info:
        robustness_report(clf, X, y, ["fgsm", "pgd10"], **options)
    assert info.value.errno == errno.ENOSPC
    assert files(small_disk) == before
    assert RobustnessReport.from_json(path) == first
    with pytest.raises(OSError, match="No space left"):
        first.to_json(small_disk / "copy.json")
    assert files(small_disk) == before
    (small_disk / "filling").unlink()
    again = robustness_report(clf, X, y, ["fgsm", "pgd10"], **options)
    assert again.cells[1].seconds == first.cells[1].seconds  # measured once


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a POSIX system")
def test_files_of_limited_size(data, digit_rows, tmp_path):
    """The same where no file system can be mounted: the kernel refuses what is too large."""
    run, path = tmp_path / "run", tmp_path / "model"
    options = {"eps": 0.05, "sanity_checks": False, "path": tmp_path / "report.json"}
    former = make(**LARGE).fit(*data)
    former.save(path)
    huge = make(checkpoint_dir=run, callbacks=[], **HUGE)
    with limited_files():
        with pytest.raises(OSError, match=r"checkpoint of epoch 1 .*File too large") as info:
            huge.fit(*data)
        assert info.value.errno == errno.EFBIG
        assert [name[:11] for name in files(run)] == ["epoch-00000"]
        assert huge.n_iter_ == 1
        before = files(tmp_path)
        with pytest.raises(OSError, match=r"File too large.*before is kept"):
            huge.save(path)
    assert files(tmp_path) == before
    assert same_weights(load(path), former)
    assert same_weights(huge.fit(*data), make(**HUGE).fit(*data))
    robustness_report(former, *data, ["fgsm"], **options)
    before = files(tmp_path)
    with limited_files(2000), pytest.raises(OSError, match="File too large"):
        robustness_report(former, *data, ["fgsm", "bim2"], **options)
    assert files(tmp_path) == before
    assert len(robustness_report(former, *data, ["fgsm", "bim2"], **options).cells) == 3


# --- folders in use ----------------------------------------------------------------------------


def _hold(folder, told):
    with locked(folder):
        told.set()
        time.sleep(60)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_two_fits_in_one_folder(data, tmp_path):
    """The second is refused while the first is alive."""
    context = multiprocessing.get_context("fork")
    told = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, told))
    process.start()
    try:
        assert told.wait(30)
        with pytest.raises(RuntimeError, match="another fit is writing its checkpoints") as info:
            make(checkpoint_dir=tmp_path).fit(*data)
        assert str(tmp_path) in str(info.value)
        assert "{fit}" in str(info.value)
    finally:
        process.kill()
        process.join()
    assert same_weights(make(checkpoint_dir=tmp_path).fit(*data), make().fit(*data))
    assert ".lock" not in os.listdir(tmp_path)


class FitAgain(Callback):
    """Another fit in the same folder, from within."""

    def __init__(self, data, folder):
        self.data, self.folder = data, folder

    def on_epoch_end(self, net, **kwargs):
        with pytest.raises(RuntimeError, match="another fit is writing"):
            make(checkpoint_dir=self.folder).fit(*self.data)


def test_two_fits_in_one_process(data, tmp_path):
    callback = FitAgain(data, tmp_path)
    assert make(checkpoint_dir=tmp_path, callbacks=[callback]).fit(*data).n_iter_ == 2


def test_lock_is_freed_after_a_failure(data, tmp_path):
    for error in (OnPurposeError, KeyboardInterrupt):
        raising = Raises("on_batch_end", error(), 2)
        with pytest.raises(error):
            make(checkpoint_dir=tmp_path, callbacks=[raising]).fit(*data)
        assert ".lock" not in os.listdir(tmp_path)
    assert make(checkpoint_dir=tmp_path, callbacks=[]).fit(*data).n_iter_ == 2


def test_without_locks(data, tmp_path, monkeypatch):
    """Some network file systems have none."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    fitted = make(checkpoint_dir=tmp_path, max_epochs=2).fit(*data)
    assert same_weights(fitted, make().fit(*data))


def test_pretraining_has_its_own_lock(data, tmp_path):
    settings = {"pretrained": 1, "checkpoint_dir": tmp_path}
    assert make(FASTENEnsembleClassifier, **settings).fit(*data).n_iter_ == 2
