"""Reproduction of the papers' tables: work that is shared, and done once."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import pytest
from small_reproduction import TINY, small_estimator, synthetic, task

from benchmarks import _store
from benchmarks.reproduce import _cells, _costs, _data, _plan, _run, _training
from robust_ensembles import VanillaEnsembleClassifier, recipes
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.exceptions import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("one_thread")


class Work:
    """Counts who does it, and lets a second one come in, if nothing keeps it out."""

    def __init__(self):
        self.done = []
        self._meeting = Barrier(2)

    def __call__(self, what):
        self.done.append(what)
        with suppress(BrokenBarrierError):  # nobody came
            self._meeting.wait(timeout=0.5)


def by_two(do):
    """Two workers that start at once."""
    start = Barrier(2)

    def one(_):
        start.wait(timeout=10)
        do()

    with ThreadPoolExecutor(2) as workers:
        list(workers.map(one, range(2)))


@pytest.fixture
def digits():
    X, y = load_digits_images()
    return X[:100], y[:100]


def test_two_workers_train_a_model_once(tmp_path, digits, monkeypatch):
    work, original = Work(), VanillaEnsembleClassifier.fit

    def fit(self, X, y):
        work("a model")
        return original(self, X, y)

    monkeypatch.setattr(VanillaEnsembleClassifier, "fit", fit)
    by_two(lambda: _store.train(small_estimator(), *digits, tmp_path, "one"))
    assert work.done == ["a model"]
    assert _store.is_trained(tmp_path, "one")


@pytest.mark.parametrize("joint", [True, False])
def test_two_workers_measure_a_number_once(tmp_path, joint):
    work = Work()

    def run(estimators):
        work(list(estimators))
        return {key: [] for key in estimators}, []

    unit, cells = _cells.Unit("unit", run, joint), _cells.Cells(tmp_path)
    models = [_plan.Model("a", None, None)]
    by_two(lambda: _cells.evaluate(unit, models, cells, lambda model: model.key))
    assert work.done == [["a"]]


def test_two_workers_share_the_models_of_a_unit(tmp_path):
    work = Work()

    def run(estimators):
        work(*estimators)
        return {key: [] for key in estimators}, []

    unit, cells = _cells.Unit("unit", run), _cells.Cells(tmp_path)
    models = [_plan.Model(key, None, None) for key in "abcd"]
    by_two(lambda: _cells.evaluate(unit, models, cells, lambda model: model.key))
    assert sorted(work.done) == list("abcd")


def test_timings_of_two_processes_are_both_kept(tmp_path):
    first, second = (_costs._Timings(tmp_path / "timings.json") for _ in range(2))
    assert first.get("x", lambda: 1.0) == 1.0
    assert second.get("y", lambda: 2.0) == 2.0
    # and what another process has timed in the meantime is the time of both
    assert first.get("z", lambda: second.get("z", lambda: 3.0) + 1) == 3.0
    anew = _costs._Timings(tmp_path / "timings.json")
    assert [anew.get(what, lambda: 1 / 0) for what in "xyz"] == [1.0, 2.0, 3.0]


# ----------------------------------------------------------------------------- what cannot be had


@pytest.fixture
def diverging(monkeypatch):
    """Trainings of GAL fail; returns the methods that were tried."""
    tried = []

    def fit(self, X, y):
        tried.append(type(self).__name__)
        raise NonFiniteLossError("the loss became infinite")

    monkeypatch.setattr(recipes.METHODS["gal"], "fit", fit)
    monkeypatch.setattr(_data, "load", synthetic)
    return tried


def test_a_failed_training_is_remembered(tmp_path, digits, monkeypatch):
    tries = []

    def fit(self, X, y):
        tries.append(len(y))
        raise NonFiniteLossError("the loss became infinite")

    monkeypatch.setattr(VanillaEnsembleClassifier, "fit", fit)
    assert _store.failure(tmp_path, "one") is None
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match="became infinite"):
            _store.train(small_estimator(), *digits, tmp_path, "one")
    assert tries == [100]
    assert _store.failure(tmp_path, "one") == "the loss became infinite"
    assert not _store.is_trained(tmp_path, "one")
    monkeypatch.undo()
    (tmp_path / "one.failed.json").unlink()
    _store.train(small_estimator(), *digits, tmp_path, "one")
    assert _store.is_trained(tmp_path, "one")


def test_two_workers_fail_once(tmp_path, digits, monkeypatch):
    work, errors = Work(), []

    def fit(self, X, y):
        work("a model")
        raise NonFiniteLossError("the loss became infinite")

    def train():
        try:
            _store.train(small_estimator(), *digits, tmp_path, "one")
        except NonFiniteLossError as error:
            errors.append(str(error))

    monkeypatch.setattr(VanillaEnsembleClassifier, "fit", fit)
    by_two(train)
    assert work.done == ["a model"]
    assert errors == ["the loss became infinite"] * 2


def test_results_tell_of_a_failed_training(tmp_path, results, diverging, monkeypatch, caplog):
    monkeypatch.setattr(_costs._Timings, "get", lambda self, what, measure: 1.0)
    job = task("ncen", "II", TINY, methods=["GAL"])
    part = job.parts[0]
    shop = _run.Workshop(tmp_path, "cpu")

    def left():
        rows = _run.dry_run(_run.replace(job, parts=[part]), shop)
        return {row["what"].partition(": ")[2]: row["number"] for row in rows[:-1]}

    assert left()["train GAL, 1 epochs"] == 1
    [model] = part.models
    assert _training.train(part.models, shop.models, "cpu") == {
        model.key: "the loss became infinite"
    }
    assert _training.train(part.models, shop.models, "cpu") == {
        model.key: "the loss became infinite"
    }
    assert len(diverging) == 1
    assert f"{model.key} could not be trained; without its .failed.json" in caplog.text
    assert left() == {}
    _run.run(_run.replace(job, parts=[part]), shop, so_far=True)
    text = (results / "ncen_II.md").read_text()
    assert "- GAL: 1 of 1 trainings failed: the loss became infinite." in text
    payload = json.loads((results / "ncen_II.json").read_text())
    assert {row["method"]: row["seeds"] for row in payload["rows"]}["GAL"] == "not run"
