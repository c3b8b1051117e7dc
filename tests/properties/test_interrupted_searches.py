"""Searches that are interrupted and run again go on from the fits they had finished."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import searched
from sklearn.model_selection import GridSearchCV, cross_validate
from small_estimators import make, same_weights

from robust_ensembles import DVERGEEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.metrics import robust_scoring

EPOCHS, CANDIDATES = 3, [0.001, 0.01]
# 100 samples are 4 batches of at most 32, and all 200 are 7
STEPS = EPOCHS * (len(CANDIDATES) * 2 * 4 + 7)


def small_search(folder, **params):
    checkpoint_dir = None if folder is None else folder / "{fit}"
    estimator = make(max_epochs=EPOCHS, checkpoint_dir=checkpoint_dir, **params)
    return GridSearchCV(estimator, {"lr": CANDIDATES}, cv=2, error_score="raise")


def same_results(first, second):
    names = [name for name in first.cv_results_ if "score" in name and "time" not in name]
    assert len(names) > 3
    equal = all(np.array_equal(first.cv_results_[n], second.cv_results_[n]) for n in names)
    return equal and same_weights(first.best_estimator_, second.best_estimator_)


def press_control_c():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


# --- in one process ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(data):
    return small_search(None).fit(*data)


@pytest.mark.parametrize(
    ("action", "error"), [(press_control_c, KeyboardInterrupt), (terminate, SystemExit)]
)
def test_continues(data, expected, steps, tmp_path, action, error):
    """Interrupted in the last epoch of the third fit, and in the second of the last."""
    search = small_search(tmp_path)
    done = 2 * 12 + 8
    steps.plan(done + 2, action)
    with pytest.raises(error):
        search.fit(*data)
    assert not hasattr(search, "cv_results_")
    left = STEPS - done
    steps.plan(left - 12, action)
    with pytest.raises(error):
        search.fit(*data)
    steps.plan()
    search.fit(*data)
    assert steps.count == 14
    assert same_results(search, expected)
    steps.plan()
    assert same_results(small_search(tmp_path).fit(*data), expected)
    assert steps.count == 0


def test_a_folder_for_each_fit(data, tmp_path):
    fitted = small_search(tmp_path).fit(*data)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert len(folders) == len(CANDIDATES) * 2 + 1
    best = fitted.best_estimator_
    assert best.checkpoint_dir_.parent == tmp_path
    assert best.checkpoint_dir_.name in folders
    assert best.checkpoint_dir == tmp_path / "{fit}"
    assert all(len(list((tmp_path / f).glob("epoch-00003.*"))) == 1 for f in folders)


def folder_of(data, checkpoint_dir, **params):
    return make(max_epochs=1, checkpoint_dir=checkpoint_dir, **params).fit(*data).checkpoint_dir_


def test_what_tells_fits_apart(data, tmp_path):
    X, y = data
    place = f"{tmp_path}/{{fit}}"
    first = folder_of(data, place)
    assert first == folder_of(data, place, accelerate="none", verbose=0)
    others = [
        folder_of(data, place, lr=0.5),
        folder_of(data, place, random_state=1),
        folder_of((X[1:], y[1:]), place),
        folder_of((X, y[::-1]), place),
    ]
    assert len({first, *others}) == 5
    assert folder_of(data, f"{tmp_path}/a/{{fit}}/b").name == "b"
    assert folder_of(data, tmp_path / "plain") == tmp_path / "plain"


def test_pretraining_goes_on_too(data, steps, tmp_path):
    def search(folder):
        estimator = make(
            DVERGEEnsembleClassifier,
            pretrained=2,
            n_steps=2,
            max_epochs=2,
            checkpoint_dir=None if folder is None else folder / "{fit}",
        )
        return GridSearchCV(estimator, {"eps": [0.01, 0.1]}, cv=2, error_score="raise")

    expected = search(None).fit(*data)
    steps.plan(16 + 6, press_control_c)  # in the second epoch of the second pretraining
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path).fit(*data)
    steps.plan()
    assert same_results(search(tmp_path).fit(*data), expected)
    assert steps.count == 4 * 16 + 28 - 16 - 4


def test_one_folder_for_all(data, tmp_path):
    estimator = make(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r'another fit: .*checkpoint_dir="some/folder/\{fit\}"'):
        cross_validate(estimator, *data, cv=2, error_score="raise")


def test_lost_scores_are_all_that_is_lost(data, steps, tmp_path):
    """Interrupted while a scorer attacks."""
    calls = []

    class Interrupted(PGD):
        def __call__(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                press_control_c()
            return super().__call__(*args, **kwargs)

    def search():
        found = small_search(tmp_path)
        attack = Interrupted(eps=0.05, n_steps=2)
        return found.set_params(scoring=robust_scoring(attack), refit="worst")

    with pytest.raises(KeyboardInterrupt):
        search().fit(*data)
    assert steps.count == 24
    steps.plan()
    search().fit(*data)
    assert steps.count == STEPS - 24


# --- in processes ------------------------------------------------------------------------------

SCRIPT = Path(searched.__file__)
PROMPT = 30  # seconds; most of it is Python's own end, on a machine that is busy


def start(folder, n_jobs):
    command = [sys.executable, str(SCRIPT), str(folder), str(folder / "results"), str(n_jobs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def epochs(folder):
    tally = folder / "epochs"
    return len(tally.read_text().splitlines()) if tally.exists() else 0


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(session):
    """Processes that `start` has started and those that these have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def workers(session):
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in alive(session)}
    return [pid for pid, line in lines.items() if b"LokyProcess" in line.read_bytes()]


def finish(folder):
    """Run the search again; what it has found, and how many epochs all runs have taken."""
    process = start(folder, 1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads((folder / "results").read_text()), epochs(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    found, n_epochs = finish(folder)
    assert n_epochs == searched.ALL_EPOCHS
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_signals(tmp_path, uninterrupted, n_jobs, number):
    """To the main process alone, of joblib's workers too nothing is left."""
    process = start(tmp_path, n_jobs)
    wait_for(lambda: epochs(tmp_path) >= 30)
    process.send_signal(number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=PROMPT)
    wait_for(lambda: not alive(process.pid))
    assert time.monotonic() - begun < PROMPT
    orderly = number == signal.SIGTERM and n_jobs == 1
    assert process.returncode == (143 if orderly else -number), errors
    before = epochs(tmp_path)
    assert before < searched.ALL_EPOCHS
    assert not (tmp_path / "results").exists()
    found, n_epochs = finish(tmp_path)
    assert found == uninterrupted
    # killed between the tally and the checkpoint, an epoch comes again
    assert n_epochs - searched.ALL_EPOCHS in range(1 if orderly else n_jobs + 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_worker_that_is_killed(tmp_path, uninterrupted):
    """By the system, when memory runs out: joblib ends the search, and the next one goes on."""
    process = start(tmp_path, 2)
    wait_for(lambda: epochs(tmp_path) >= 30)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "TerminatedWorkerError" in errors
    wait_for(lambda: not alive(process.pid))
    found, n_epochs = finish(tmp_path)
    assert found == uninterrupted
    assert n_epochs - searched.ALL_EPOCHS in range(3)
