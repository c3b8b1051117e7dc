"""One fit in several processes: the same result as in one."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from courses import train_and_run
from lockstep import run_together
from steps import look, look_and_check
from trainings import (
    NAMED,
    OTHERS,
    digits,
    distances,
    make,
    perceptron,
    residual,
    same,
    train_all,
)

from robust_ensembles import CLDLEnsembleClassifier, TRSEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.parallel import data_parallel
from robust_ensembles.persistence import load
from robust_ensembles.training import GaussianNoise


def compare(jobs, size, tolerance=1e-6):
    check(jobs, run_together(size, train_all, jobs), tolerance)


def check(jobs, trained, tolerance=1e-6):
    """Whether several processes have trained what one does, and all of them the same."""
    first, *others = trained
    for (cls, params), one, several in zip(jobs, train_all(jobs), first, strict=True):
        weights, losses = distances(one, several)
        assert max(weights, losses) < tolerance, (cls.__name__, params, weights, losses)
    for other in others:
        assert all(map(same, first, other))


JOBS = [(cls, {"module": residual}) for cls in NAMED]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes has trained, and what became of its courses."""
    return run_together(2, train_and_run, JOBS, tmp_path_factory.mktemp("courses"))


def test_equals_one_process(both):
    """After 20 steps, in float64; the last batch of an epoch is shared out as 8 and 7 rows."""
    check(JOBS, [trained for trained, _ in both])


@pytest.mark.slow
def test_without_batch_normalization():
    compare([(cls, {"module": perceptron}) for cls in NAMED], 2)


@pytest.mark.slow
def test_parts_of_a_step():
    """Input gradients, attacks and features, differentiated, down to batches of one sample."""
    expected = look()
    for found in run_together(2, look_and_check):
        assert found.keys() == expected.keys()
        for name, tensors in expected.items():
            for tensor, other in zip(tensors, found[name], strict=True):
                np.testing.assert_allclose(other, tensor, rtol=1e-9, atol=1e-11, err_msg=name)


def test_courses(both):
    first, second = (courses for _, courses in both)
    refused, *_ = first
    assert refused == second[0]
    for name, message in refused.items():
        assert message.startswith(
            "FileExistsError" if name == "cannot be written" else "ValueError"
        ), name
        assert name in message, message
    assert len(refused) == 11

    for courses, _ in (first[1], second[1]):
        # stopped at the tenth batch after two epochs, which are 8, and went on with the ninth
        assert set(courses.values()) == {((10, 2), 12, True)}
    assert (first[1][1], second[1][1]) == (True, False)

    (where, at_stop, after), (other_where, other_at_stop, other_after) = first[2], second[2]
    assert where == other_where == (3, 0)
    assert same(at_stop, other_at_stop)
    assert same(after, other_after)
    assert not same(at_stop, after)
    assert all(map(same, first[3], second[3]))

    assert first[4] == ([20, 30], 4, second[4][2])
    assert second[4][:2] == ([30], 0)


def test_outside_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="torchrun"), data_parallel():
        pass


@pytest.mark.slow
def test_other_methods():
    """Two epochs each; and what changes how members compute, or what they see."""
    fewer = {"max_epochs": 2}
    compare([(cls, fewer) for cls in OTHERS], 2)
    options = [
        {"accelerate": "none"},
        {"accelerate": ["double_backward"]},
        {"optimizer": "adam", "lr": 0.001, "optimizer_params": None},
        {"train_split": 0.2, "class_weight": "balanced", "augmentation": GaussianNoise(0.1)},
        {"attack": PGD(eps=0.1, n_steps=2), "attack_target": "member", "craft_bn": "train"},
        {"attack": PGD(eps=0.1, n_steps=2), "craft_bn": "eval"},
        {"formulation": "released"},
    ]
    compare([(CLDLEnsembleClassifier, {**fewer, **option}) for option in options], 2)
    pretrained = [(cls, {**fewer, "pretrained": 1}) for cls in OTHERS[-2:]]
    compare(pretrained, 2)


@pytest.mark.slow
def test_three_processes():
    """The last batch of two samples leaves one of them without any."""
    few = {"n_samples": 98, "max_epochs": 2, "lr": 0.005}
    compare([(cls, few) for cls in (*NAMED, TRSEnsembleClassifier)], 3)


@pytest.mark.slow
def test_single_precision():
    """After 4 steps: rounding that lets a ReLU change sides grows fast from then on."""
    jobs = [
        (cls, {"module": partial(module, dtype=torch.float32), "max_epochs": 1})
        for cls in NAMED
        for module in (residual, perceptron)
    ]
    compare(jobs, 2, 1e-5)
    compare([(NAMED[0], {**jobs[0][1], "precision": "bfloat16"})], 2, 3e-2)


SCRIPT = """
import sys
from courses import one_fails, plain
from trainings import digits, residual
from robust_ensembles.parallel import data_parallel
from sklearn.model_selection import GridSearchCV

if __name__ == "__main__":
    if sys.argv[1] == "fails":
        with data_parallel():
            one_fails()
    X, y = digits(60)
    with data_parallel():
        clf = plain(module=residual, verbose=1).fit(X, y)
    with data_parallel():
        search = GridSearchCV(plain(), {"lr": [0.01, 0.05]}, cv=2, error_score="raise").fit(X, y)
    clf.save(sys.argv[1])
"""


def torchrun(tmp_path, argument):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # a port of its own, which the rendezvous finds
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([here, *sys.path]),
    }
    return subprocess.run(
        [*command, str(script), argument],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_torchrun(tmp_path):
    done = torchrun(tmp_path, str(tmp_path / "saved"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train_loss") == 1  # the head of one table
    expected = make(NAMED[0], max_epochs=2).fit(*digits(60))
    loaded = load(tmp_path / "saved", module=residual)
    np.testing.assert_allclose(
        loaded.predict_proba(digits(60)[0]), expected.predict_proba(digits(60)[0]), atol=1e-6
    )


@pytest.mark.slow
def test_error_in_one_process(tmp_path):
    """The others, who wait for it, end as well, long before they would give up."""
    start = time.monotonic()
    done = torchrun(tmp_path, "fails")
    assert done.returncode != 0
    assert "LookupError: on purpose" in done.stderr
    assert time.monotonic() - start < 120
