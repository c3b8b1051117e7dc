"""Reproduction of the papers' tables: a run goes on from the result of another machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_reproduction import TINY, fill, small_estimator, task

from benchmarks import _store
from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce import _known, _run, _training
from robust_ensembles.datasets import load_digits_images

pytestmark = pytest.mark.usefixtures("one_thread", "small_images")
METHODS = ["GAL", "CLDL(3,2,4)"]
RECORD = {"seconds": 3600.0, "cpu_seconds": 1800.0, "machine": "another machine"}


def planned(**changes):
    return task("cldl", "VIII", replace(TINY, **changes), methods=METHODS)


@pytest.fixture
def result(tmp_path, results):
    """What another machine has written, of one seed."""
    shop = _run.Workshop(tmp_path / "there", "cpu")
    job = planned()
    fill(job, shop, lambda name, seed: 0.4 + 0.2 * name.startswith("CLDL"))
    for model in job.parts[0].models:
        _store.take_over(shop.models, model.key, RECORD)
    _run.run(job, shop, so_far=True)
    return (results / "cldl_VIII.json").rename(tmp_path / "known.json")


@pytest.fixture
def here(tmp_path):
    return _run.Workshop(tmp_path / "here", "cpu")


@pytest.fixture
def trained(monkeypatch):
    """Keys of what is trained, which takes no time."""
    keys = []
    monkeypatch.setattr(
        _training, "train", lambda models, *rest: keys.extend(m.key for m in models) or {}
    )
    return keys


def test_the_same_table_is_written_without_any_work(result, here, results, trained):
    _run.take_over([result], planned(), here)
    _run.run(planned(), here)
    before, after = (json.loads(path.read_text()) for path in (result, results / "cldl_VIII.json"))
    assert trained == []
    for part in ("rows", "numbers", "about", "quirks", "known"):
        assert after[part] == before[part]
    assert "4 models were trained in 4.00 hours (2.00 of the processor)" in after["about"]
    assert "another machine" in after["about"]


def test_only_what_is_missing_is_trained(result, here):
    job = planned(seeds=2)
    [part] = job.parts
    _run.take_over([result], job, here)
    units = job.units(part, list)
    missing = [model for model in part.targets if model.estimator.random_state == 1]
    needed = _training.needed(part, units, here.cells)
    assert needed == [*part.surrogates, *missing]
    # the record of a model is not the model
    assert not any(_store.is_trained(here.models, model.key) for model in needed)
    for unit in units:
        for model in missing:
            here.cells.write(model.key, unit.name, [], 1.0, [])
    assert _training.needed(part, units, here.cells) == []


def test_costs_are_of_what_is_missing(result, here, monkeypatch):
    monkeypatch.setattr(_run._costs._Timings, "get", lambda self, what, measure: 1.0)
    job = planned(seeds=2)
    _run.take_over([result], job, here)
    numbers = {row["what"].partition(": ")[2]: row["number"] for row in _run.dry_run(job, here)}
    assert numbers["train GAL, 1 epochs"] == 1
    assert numbers["train surrogate of 5, 1 epochs"] == 1


def test_what_was_measured_here_stays(result, here):
    job = planned()
    fill(job, here, lambda name, seed: 0.7)
    [part] = job.parts
    unit, model = job.units(part, list)[0].name, part.targets[0]
    before = here.cells.read(model.key, unit)
    _run.take_over([result], job, here)
    assert here.cells.read(model.key, unit) == before


def test_a_model_whose_record_is_known_can_be_trained(tmp_path):
    X, y = load_digits_images()
    _store.take_over(tmp_path, "one", RECORD)
    assert not _store.is_trained(tmp_path, "one")
    _store.train(small_estimator(), X[:100], y[:100], tmp_path, "one")
    assert _store.is_trained(tmp_path, "one")
    assert _store.record(tmp_path, "one")["machine"] == _store.machine()
    _store.take_over(tmp_path, "one", RECORD)
    assert _store.record(tmp_path, "one")["machine"] == _store.machine()
    assert _store.record(tmp_path, "two") is None


def test_results_that_do_not_fit(result, here, tmp_path):
    with pytest.raises(ValueError, match=r"known\.json has no number for this plan.*--seeds"):
        _run.take_over([result], planned(epochs=2), here)
    old = tmp_path / "old.json"
    old.write_text('{"title": "of an older version"}')
    for path in (old, tmp_path / "absent.json"):
        with pytest.raises(ValueError, match=rf"{path.name} is no result of this command"):
            _run.take_over([path], planned(), here)


def test_the_command_goes_on_from_a_result(result, results, tmp_path):
    words = "--paper cldl --table VIII --epochs 1 --seeds 2 --images 12 --train-images 64"
    work = ["--work", str(tmp_path / "new"), "--device", "cpu", "--so-far"]
    command.main([*words.split(), "--known", str(result), *work])
    written = json.loads((results / "cldl_VIII.json").read_text())
    seeds = {row["method"]: row["seeds"] for row in written["rows"]}
    assert seeds == dict.fromkeys(["ADP", "DVERGE", "TRS"], "not run") | dict.fromkeys(
        METHODS, "1 of 2"
    )
    assert "--known known.json" in written["command"]


def test_every_committed_result_can_be_gone_on_from():
    files = sorted(
        (Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce").glob("*.json")
    )
    assert len(files) >= 5
    for path in files:
        known = _known._read(path)
        assert set(known["measured"]) <= set(known["trained"])
        assert all(
            content["rows"] for units in known["measured"].values() for content in units.values()
        )
