"""A device for each fit, with the CPU in the place of GPUs."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from sklearn.base import clone
from skorch.callbacks import Callback

from robust_ensembles import DVERGEEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.parallel import one_fit_per_gpu
from robust_ensembles.persistence import load


@pytest.fixture
def slots(tmp_path):
    """Some devices, and a folder of this test alone."""

    def make(n, **params):
        return one_fit_per_gpu(["cpu"] * n, lock_dir=tmp_path / "locks", **params)

    return make


def make(device, cls=VanillaEnsembleClassifier, **params):
    return cls(
        module_params={"hidden_sizes": (8,)},
        max_epochs=1,
        device=device,
        random_state=0,
        **params,
    )


class LogTimes(Callback):
    """Writes down when a training begins and ends.

    Parameters
    ----------
    path : path-like
    """

    def __init__(self, path):
        self.path = path

    def _write(self, sign):
        with open(self.path, "a") as file:
            file.write(f"{time.monotonic()} {sign}\n")

    def on_train_begin(self, net, **kwargs):
        self._write(1)
        time.sleep(0.3)

    def on_train_end(self, net, **kwargs):
        self._write(-1)


def most_at_once(path):
    changes = sorted(line.split() for line in path.read_text().splitlines())
    return max(np.cumsum([int(sign) for _, sign in changes]))


@contextmanager
def held_elsewhere(device):
    """Another process holds the first device, and is killed."""
    code = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    os.makedirs(device.lock_dir, exist_ok=True)
    command = [sys.executable, "-c", code, f"{device.lock_dir}/cpu-0.lock"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    try:
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


@pytest.mark.parametrize(
    ("backend", "n_jobs", "n_slots"), [("loky", 2, 1), ("threading", 3, 1), ("threading", 3, 2)]
)
def test_no_more_fits_than_devices(backend, n_jobs, n_slots, slots, digit_rows, tmp_path, loky):
    X, _, y, _ = digit_rows
    log = tmp_path / "log"
    estimators = [make(slots(n_slots), callbacks=[LogTimes(log)]) for _ in range(6)]
    with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
        fitted = joblib.Parallel()(joblib.delayed(e.fit)(X, y) for e in estimators)
    assert most_at_once(log) == n_slots
    expected = make("cpu").fit(X, y).predict_proba(X)
    for estimator in fitted:
        assert estimator.device_ == torch.device("cpu")
        np.testing.assert_array_equal(estimator.predict_proba(X), expected)


def test_killed_process_frees_its_device(slots, digit_rows):
    X, _, y, _ = digit_rows
    with held_elsewhere(slots(1)):
        with pytest.raises(TimeoutError, match=r"none became free in 0\.3 s"):
            make(slots(1, timeout=0.3)).fit(X, y)
        make(slots(2, timeout=0)).fit(X, y)  # a second device is free
    assert os.listdir(slots(1).lock_dir)  # the files stay
    make(slots(1, timeout=0)).fit(X, y)


def test_fit_waits_until_one_is_free(slots, digit_rows, caplog):
    X, _, y, _ = digit_rows
    with held_elsewhere(slots(1)) as other, caplog.at_level(logging.INFO, "robust_ensembles"):
        killer = threading.Timer(0.5, other.kill)
        killer.start()
        make(slots(1)).fit(X, y)
        killer.join()
    assert caplog.messages.count("waiting for one of cpu-0 to be free") == 1


def test_a_fit_inside_another_takes_the_same_device(slots, digit_rows):
    X, _, y, _ = digit_rows
    clf = make(slots(1, timeout=0), DVERGEEnsembleClassifier, pretrained=1).fit(X, y)
    assert clf.pretrained_.n_iter_ == 1


def test_free_again_after_the_fit(slots, digit_rows):
    """After errors too; predictions, and training on, need it no longer."""
    X, _, y, _ = digit_rows
    device = slots(1, timeout=0)

    class Failing(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        make(device, callbacks=[Failing()]).fit(X, y)
    first, second = (make(device, warm_start=True).fit(X, y) for _ in range(2))
    with held_elsewhere(slots(1)):
        assert first.score(X, y) == second.score(X, y)
        with pytest.raises(TimeoutError):
            first.fit(X, y)
        with pytest.raises(TimeoutError):
            first.partial_fit(X, y)
        assert first.n_iter_ == 1
    assert first.fit(X, y).n_iter_ == 2
    assert first.partial_fit(X, y).n_iter_ == 3


def test_a_process_comes_back_to_its_device(slots):
    """Where its scores are computed, while another one's fit may take what it left."""
    with held_elsewhere(slots(2)), slots(2).reserve():
        pass
    locks = [FileLock(f"{slots(2).lock_dir}/cpu-{i}.lock") for i in range(2)]
    with slots(2).reserve():
        locks[0].acquire(timeout=0)
        locks[0].release()
        with pytest.raises(Timeout):
            locks[1].acquire(timeout=0)


def test_parameter_of_an_estimator(slots, digit_rows, tmp_path):
    X, _, y, _ = digit_rows
    device = slots(2)
    assert clone(make(device)).device == device == pickle.loads(pickle.dumps(device))
    clf = make(device).fit(X, y)
    clf.save(tmp_path / "file")
    again = load(tmp_path / "file", device="cpu")
    np.testing.assert_array_equal(again.predict(X), clf.predict(X))
    assert pickle.loads(pickle.dumps(clf)).device == device


def test_wrong_devices(digit_rows, monkeypatch):
    X, _, y, _ = digit_rows
    with pytest.raises(TypeError, match="list of names"):
        one_fit_per_gpu("cuda:0")
    with pytest.raises(ValueError, match="empty"):
        one_fit_per_gpu([])
    with pytest.raises(ValueError, match="timeout"):
        one_fit_per_gpu(timeout=-1)
    with pytest.raises(ValueError, match="no torch device"):
        make(one_fit_per_gpu(["gpu"])).fit(X, y)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="finds no CUDA device"):
        make(one_fit_per_gpu()).fit(X, y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fits_take_turns_on_a_gpu(digit_rows, tmp_path):
    X, _, y, _ = digit_rows
    log, device = tmp_path / "log", one_fit_per_gpu(["cuda:0"], lock_dir=tmp_path / "locks")
    estimators = [make(device, callbacks=[LogTimes(log)]) for _ in range(4)]
    fitted = joblib.Parallel(n_jobs=2)(joblib.delayed(e.fit)(X, y) for e in estimators)
    assert most_at_once(log) == 1
    assert {e.device_ for e in fitted} == {torch.device("cuda", 0)}
    names = os.listdir(tmp_path / "locks")
    assert names == [f"cuda-{torch.cuda.get_device_properties(0).uuid}-0.lock"]
