"""Reproduction of the papers' tables: what is printed, planned, kept and written."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_reproduction import TINY, fill, planned, small_estimator, synthetic, task

from benchmarks import _store
from benchmarks.reproduce import (
    __main__ as command,
)
from benchmarks.reproduce import (
    _cells,
    _costs,
    _data,
    _figures,
    _measured,
    _methods,
    _plan,
    _published,
    _run,
    _units,
)
from benchmarks.reproduce._budget import Budget
from benchmarks.reproduce._networks import SoftmaxInTraining
from benchmarks.reproduce._published import Column
from robust_ensembles import NCEnEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.datasets import load_digits_images, load_fashion_mnist
from robust_ensembles.exceptions import DatasetNotFoundError
from robust_ensembles.modules import CifarResNet
from robust_ensembles.protocols import cldl_split

TABLES = [(paper, name) for paper in _published.PAPERS for name in _published.names(paper)]
pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------ what is printed


def test_all_published_numbers_are_there():
    tables = [_published.read(*table) for table in TABLES]
    counts = {"cldl": 0, "ncen": 0, "ceat": 0}
    for table in tables:
        counts[table.paper] += sum(len(row.values) for row in table.rows)
    assert counts == {"cldl": 1696, "ncen": 864, "ceat": 225}
    figure = _published.read_figure("ceat", "3")
    assert sum(len(row.values) for row in figure.rows) == 72
    assert figure.columns(figure.settings[0])[0] == Column("1->1", 0.0)


@pytest.mark.parametrize(
    ("paper", "name", "dataset", "method", "column", "value"),
    [
        ("cldl", "VIII", "fashion-mnist", "ADP", Column("BIM", 0.08), 38.38),
        ("ncen", "II", "fashion-mnist", "BL", Column("clean", 0.0), 93.37),
        ("ceat", "1", "cifar100", "ADP", Column("AA", 0.031), 15.81),
        ("ceat", "4", "cifar10", "CEAT[none]", Column("PGD20", 0.031), 56.36),
    ],
)
def test_some_published_numbers(paper, name, dataset, method, column, value):
    rows = _published.read(paper, name).rows
    row = next(r for r in rows if (r.setting.dataset, r.method) == (dataset, method))
    assert row.values[column] == value


def test_names_of_tables():
    assert _published.names("cldl")[:5] == ["I", "II", "III", "IV", "V"]
    assert _published.names("cldl")[-1] == "XIV"
    assert _published.read("cldl", "viii").name == "VIII"
    with pytest.raises(ValueError, match="has no results table '5'; it has 1, 2, 3, 4"):
        _published.read("ceat", "5")
    with pytest.raises(ValueError, match="it has cifar10 resnet20; cifar100 resnet20"):
        _published.read("ceat", "1").selected(["mnist"], None)


# ---------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize(("paper", "name"), TABLES)
def test_every_printed_method_has_an_estimator(paper, name):
    for row in _published.read(paper, name).rows:
        estimator = _methods.published(paper, row.method).estimator(row.setting, epochs=3)
        assert estimator.n_estimators == row.setting.members
        assert estimator.max_epochs == 3
        networks = row.setting.network.split("+")
        if estimator.module in (SoftmaxInTraining, [SoftmaxInTraining] * len(networks)):
            params = estimator.module_params
            several = params if isinstance(params, list) else [params]
            assert [f"resnet{p['depth']}" for p in several] == networks
        else:
            assert estimator.module == (networks if len(networks) > 1 else networks[0])


def made(paper, name, setting):
    return _methods.published(paper, name).estimator(setting)


def test_names_become_parameters():
    fashion = _published.Setting("fashion-mnist", "lenet5", 5)
    cldl = made("cldl", "CLDL(3,0.5,4)", fashion)
    assert (cldl.gamma, cldl.alpha, cldl.beta) == (3.0, 0.5, 4.0)
    assert (cldl.formulation, cldl.max_epochs, cldl.n_estimators) == ("released", 30, 5)
    cifar = _published.Setting("cifar10", "resnet20", 3)
    assert made("ceat", "CEAT(5,1)", cifar).lam == 5.0
    weightless = made("ceat", "CEAT[L_adv]", cifar)
    assert (weightless.lam, weightless.mu, weightless.mu_exp) == (0.0, 5.0, 0.0)
    assert made("ceat", "GAL+L^D", cifar).calibration.mu == 5.0
    assert made("ceat", "GAL", cifar).calibration is None
    baseline = made("ceat", "Baseline", cifar)
    assert isinstance(baseline, VanillaEnsembleClassifier)
    assert (baseline.max_epochs, baseline.lr) == (120, 0.01)
    ncen = made("ncen", "NCEn(0.08,0.02)", cifar)
    assert isinstance(ncen, NCEnEnsembleClassifier)
    assert (ncen.lambda_cos, ncen.lambda_norm, ncen.module) == (0.08, 0.02, "resnet20")
    assert _methods.published("cldl", "SoE") is None


def test_ncen_code_ends_members_in_softmax():
    torch.manual_seed(0)
    ours = SoftmaxInTraining((1, 8, 8), 4, depth=8, width=2).eval()
    plain = CifarResNet((1, 8, 8), 4, depth=8, width=2)
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(ours(x), plain.eval()(x))
    torch.testing.assert_close(ours.train()(x), plain.train()(x).softmax(dim=1))


def test_ablations_differ_in_what_they_settle():
    setting = _published.Setting("fashion-mnist", "lenet5", 3)
    plain, noisy, toggled, printed = _methods.ablations("cldl", setting)
    assert noisy.name == "Vanilla + noise + LeakyReLU"
    first, second = plain.estimator(setting), noisy.estimator(setting)
    assert second.module_params["activation"] == "leaky_relu"
    assert second.augmentation[-1].sigma == 0.15
    assert len(second.augmentation) == len(first.augmentation) + 1
    assert toggled.estimator(setting).augmentation[-1].sigma == 0.15
    assert printed.estimator(setting).formulation == "paper"
    cifar = setting._replace(dataset="cifar10", network="resnet20")
    without = _methods.ablations("cldl", cifar)[2]
    assert without.name == "CLDL(4,2,4) without noise and LeakyReLU"
    assert len(without.estimator(cifar).augmentation) == 2
    assert _methods.ablations("cldl", cifar)[1].estimator(cifar).augmentation[-1].sigma == 0.045
    on_logits = _methods.ablations("ncen", cifar)[1].estimator(cifar)
    assert on_logits.ce_on_probabilities is False


# ------------------------------------------------------------------------------ how much is done


def test_budget():
    tenth = Budget(0.1)
    assert tenth.epochs_of(30) == 3
    assert tenth.epochs_of(4) == 1
    assert tenth.seeds_of("cldl") == [0]
    assert Budget().seeds_of("cldl") == [0, 1, 2, 3, 4]
    assert tenth.images_of(9000) == 900
    assert tenth.images_of(90) == 90
    assert tenth.train_images_of(60_000) == 60_000
    assert Budget(0.1, epochs=7, images=500, train_images=10).epochs_of(30) == 7
    title = Budget(0.1, images=500).title("cldl", epochs=[30], images=500, of_images=9000, train="")
    assert title == "at 3 of 30 epochs, 1 of 5 seeds, 500 of 9000 images"
    narrow = Budget(train_images=100, precision="bfloat16")
    assert narrow.trained_on(200) == ", trained on 100 of 200 images, trained in bfloat16"
    assert narrow.trained_on(100) == ", trained in bfloat16"
    small = replace(narrow, batch_size=32)
    assert small.trained_on(100) == ", trained in batches of 32, trained in bfloat16"
    full = Budget(seeds=2).title("ceat", epochs=[150, 120], images=5, of_images=5, train="")
    assert full == "at all 120/150 epochs, all 2 seeds, all 5 images"


def test_precision_of_trainings(small_images):
    table = _published.read("ceat", "4")
    wide, narrow = (
        _plan.parts(table, replace(TINY, precision=precision))[0].models
        for precision in ("float32", "bfloat16")
    )
    assert {model.estimator.precision for model in wide} == {"float32"}
    assert {model.estimator.precision for model in narrow} == {"bfloat16"}
    assert not {model.key for model in wide} & {model.key for model in narrow}


def test_batches_of_trainings(small_images):
    table = _published.read("ceat", "4")
    own, small = (
        _plan.parts(table, replace(TINY, batch_size=batch_size))[0].models
        for batch_size in (None, 32)
    )
    assert {model.estimator.batch_size for model in own} == {128}
    assert {model.estimator.batch_size for model in small} == {32}
    assert not {model.key for model in own} & {model.key for model in small}


@pytest.mark.parametrize(
    "bad", [{"fraction": 0.0}, {"fraction": 1.5}, {"seeds": 0}, {"batch_size": 0}]
)
def test_bad_budget(bad):
    with pytest.raises(ValueError, match="must be"):
        Budget(**bad)


@pytest.mark.usefixtures("small_images")
def test_tables_share_models():
    [eighth], [tenth] = planned("cldl", "VIII"), planned("cldl", "X")
    shared = {m.key for m in eighth.models} & {m.key for m in tenth.models}
    assert len(shared) == 3  # CLDL(3,2,4) and both surrogates
    assert [m.estimator.random_state for m in eighth.surrogates] == [1003, 1005]
    assert len(eighth.targets) == 5
    keys = {m.key for m in eighth.targets}
    for other in (
        replace(TINY, epochs=2),
        replace(TINY, train_images=65),
        replace(TINY, seeds=2),
    ):
        [changed] = planned("cldl", "VIII", other)
        same = {m.key for m in changed.targets} & keys
        assert len(same) == (5 if other.seeds == 2 else 0)


@pytest.mark.usefixtures("small_images")
def test_test_images_are_those_of_the_paper():
    everything = synthetic("fashion-mnist")
    tuning, evaluation = cldl_split()
    for name, index in (("VIII", evaluation), ("XIV", tuning)):
        [part] = planned("cldl", name)
        assert part.of_images == len(index)
        np.testing.assert_array_equal(part.images.X_test, everything.X_test[index[:12]])
    [part] = planned("ceat", "4")
    np.testing.assert_array_equal(part.images.X_test, everything_of("cifar10").X_test[:12])


def everything_of(dataset):
    return synthetic(dataset)


@pytest.mark.usefixtures("small_images")
def test_rows_that_are_not_run_keep_their_numbers():
    [part] = planned("cldl", "VIII", methods=["GAL"], ablations=True)
    by_name = {row.name: row for row in part.rows}
    assert by_name["ADP"].models == []
    assert by_name["ADP"].note == "not asked for"
    assert by_name["ADP"].published
    assert len(by_name["GAL"].models) == 1
    assert len(by_name["Vanilla + noise + LeakyReLU"].models) == 1
    [fourth] = planned("ceat", "4", ablations=True)
    assert len({row.name for row in fourth.rows}) == len(fourth.rows) == 5
    with pytest.raises(ValueError, match="the table has no SoE; it has ADP"):
        planned("cldl", "VIII", methods=["SoE"])
    with pytest.raises(ValueError, match=r"the table has no foo, PGD20; it has BIM, .*PGD$"):
        planned("cldl", "VIII", attacks=["foo", "fgsm", "PGD20"])
    with pytest.raises(ValueError, match=r"the table has no clean, PGD; it has PGD20, MIM$"):
        planned("ceat", "4", attacks=["clean", "PGD"])
    with pytest.raises(ValueError, match=r"the table has no PGD; it has PGD 1->1, "):
        _plan.parts(_figures.find("ncen", "3").table, TINY, attacks=["PGD"])
    [some] = planned("ceat", "1", attacks=["pgd20"])[:1]
    assert [str(column) for column in some.columns] == ["clean", "PGD20 0.031"]
    assert [unit.name for unit in _units.units(some, list, ablations=False)] == ["ceat-12test-PGD"]


def test_absent_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_ENSEMBLES_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"MNIST was not found.*Put train-images.*--npz"):
        command.main(["--paper", "cldl", "--table", "IV", "--dry-run"])


def test_compressed_images_are_called_so(tmp_path):
    content = {
        f"{split}_{what}": value
        for split in ("train", "test")
        for what, value in (
            ("images", np.zeros((3, 4, 4, 3), np.uint8)),
            ("labels", np.arange(3)),
        )
    }
    for name, label in (
        ("cifar10_jpeg75.npz", "CIFAR-10 (JPEG q75)"),
        ("own.npz", "CIFAR-10 (own.npz)"),
    ):
        np.savez(tmp_path / name, **content)
        assert _data.load("cifar10", tmp_path / name).label == label
    assert _data.load("mnist", tmp_path / "cifar10_jpeg75.npz").label.startswith("MNIST")
    [own] = planned("ceat", "4", archive=tmp_path / "own.npz")
    assert own.images.digest
    assert _data.load("cifar10", tmp_path / "cifar10_jpeg75.npz").digest == ""
    with pytest.raises(ValueError, match=r"--npz holds one data set.*cifar10 and cifar100"):
        planned("ceat", "1", archive=tmp_path / "own.npz")


@pytest.mark.parametrize("changed", ["train_images", "train_labels", "test_images", "test_labels"])
def test_archives_of_one_name_do_not_share_models(tmp_path, changed):
    content = {
        "train_images": np.zeros((20, 8, 8, 3), np.uint8),
        "train_labels": np.arange(20) % 10,
        "test_images": np.zeros((20, 8, 8, 3), np.uint8),
        "test_labels": np.arange(20) % 10,
    }
    other = content[changed].copy()
    other.flat[-1] ^= 1  # what the plan below does not even take
    keys = []
    for folder, last in (("a", {}), ("b", {changed: other}), ("c", {})):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "own.npz", **{**content, **last})
        budget = replace(TINY, train_images=10, images=10)
        [part] = planned("ceat", "4", budget, archive=tmp_path / folder / "own.npz")
        keys.append({model.key for model in part.models})
    assert not keys[0] & keys[1]
    assert keys[0] == keys[2]


def test_names_of_what_was_trained_stay():
    images = _data.Images("CIFAR-10 (JPEG q75)", *synthetic("cifar10").head(64, range(12))[1:])
    setting = _published.Setting("cifar10", "resnet20", 3)
    method = _methods.published("ceat", "CEAT[none]")
    model = _plan.model(method, setting, TINY, images, random_state=0)
    text = f"{_plan.described(model.estimator)} on 64 images of CIFAR-10 (JPEG q75)"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert model.key == f"ceat-cifar10-3-seed0-{digest}"


# ------------------------------------------------------------------------------- what is kept


def test_a_killed_training_goes_on(tmp_path, monkeypatch, caplog):
    X, y = load_digits_images()
    X, y = X[:200], y[:200]
    original = _store._ProcessorTime.on_epoch_end

    def killed(self, net, **kwargs):
        if len(net.history) == 2:
            raise RuntimeError("killed")
        original(self, net, **kwargs)

    monkeypatch.setattr(_store._ProcessorTime, "on_epoch_end", killed)
    with pytest.raises(RuntimeError, match="killed"):
        _store.train(small_estimator(epochs=3), X, y, tmp_path, "one")
    assert not _store.is_trained(tmp_path, "one")
    monkeypatch.setattr(_store._ProcessorTime, "on_epoch_end", original)
    with caplog.at_level("INFO"):
        _store.train(small_estimator(epochs=3), X, y, tmp_path, "one")
    assert "goes on after epoch 1" in caplog.text
    stored = _store.load(tmp_path, "one")
    straight = small_estimator(epochs=3).fit(X, y)
    np.testing.assert_array_equal(stored.model.predict_proba(X), straight.predict_proba(X))
    assert stored.seconds > 0
    assert stored.cpu_seconds > 0
    assert not list(tmp_path.glob("*.checkpoints"))
    # and it is not trained again
    _store.train(None, X, y, tmp_path, "one")


def test_locks_tell_who_works(tmp_path):
    path = tmp_path / "folder" / "one.lock"
    assert not _store.is_locked(path)
    with _store.locked(path):
        assert _store.is_locked(path)
    assert not _store.is_locked(path)


def test_what_nobody_holds_comes_first(tmp_path):
    turns = _store.unlocked_first("abcd", lambda one: tmp_path / one)
    assert next(turns) == "a"
    with _store.locked(tmp_path / "b"):
        assert next(turns) == "c"  # locked after the first turn
    with _store.locked(tmp_path / "d"):
        assert next(turns) == "b"  # free again
        assert next(turns) == "d"  # nothing else is left
    assert list(turns) == []


@pytest.mark.parametrize("joint", [True, False])
def test_numbers_are_measured_once(tmp_path, joint):
    calls = []

    def run(estimators):
        calls.append(list(estimators))
        if "c" in estimators and len(calls) < 4 and not joint:
            raise RuntimeError("killed")
        return {key: [{"value": key}] for key in estimators}, ["a quirk"]

    unit = _cells.Unit("unit", run, joint)
    cells = _cells.Cells(tmp_path)
    models = [_plan.Model(key, None, None) for key in "abc"]
    if joint:
        _cells.evaluate(unit, models[:2], cells, lambda model: model.key)
    else:
        with pytest.raises(RuntimeError, match="killed"):
            _cells.evaluate(unit, models, cells, lambda model: model.key)
    _cells.evaluate(unit, models, cells, lambda model: model.key)
    assert calls == ([["a", "b"], ["c"]] if joint else [["a"], ["b"], ["c"], ["c"]])
    content = cells.read("b", "unit")
    assert content["rows"] == [{"value": "b"}]
    assert content["quirks"] == ["a quirk"]
    assert cells.read("b", "other") is None


# --------------------------------------------------------------------------- what is written


def test_spread_is_of_seeds_and_images():
    assert _measured.Number((50.0,), 100).spread == pytest.approx(10.0)
    assert _measured.Number((50.0, 54.0), 10**12).spread == pytest.approx(2 * math.sqrt(8))
    both = _measured.Number((48.0, 52.0), 100).spread
    assert both == pytest.approx(2 * math.sqrt(8 + 25))


@pytest.mark.usefixtures("small_images")
def test_measured_beside_published(tmp_path, results):
    job = task("cldl", "VIII", replace(TINY, seeds=2), methods=["GAL", "CLDL(3,2,4)"])
    shop = _run.Workshop(tmp_path, "cpu")
    fill(job, shop, lambda name, seed: 0.4 + 0.02 * seed + 0.2 * name.startswith("CLDL"))
    _run.run(job, shop, so_far=True)
    payload = json.loads((results / "cldl_VIII.json").read_text())
    assert payload["title"] == (
        "CLDL, Table VIII: Synthetic, 3 x lenet5, at 1 of 30 epochs, 2 of 5 seeds, "
        "12 of 9000 images, trained on 64 of 300 images, so far"
    )
    rows = {row["method"]: row for row in payload["rows"]}
    assert rows["ADP"]["seeds"] == "not run"
    assert rows["ADP"]["published"] == "22.0"
    assert rows["GAL"]["faithful"] == "51.0"
    assert rows["GAL"]["of all images"] == "41.0"
    assert rows["GAL"]["sound"] == "31.0"
    [numbers] = payload["numbers"]
    cell = next(c for c in numbers["cells"] if (c["method"], c["attack"]) == ("GAL", "BIM"))
    assert cell["published"] == 54.43
    assert cell["faithful"] == [50.0, 52.0]
    assert cell["difference"] == pytest.approx(51 - 54.43)
    # two seeds 2 points apart, and half a point by the images
    assert cell["within the spread"] == (2 * math.sqrt(2 + 0.2499) >= 54.43 - 51)
    text = (results / "cldl_VIII.md").read_text()
    # measured it gains everywhere, published not: so many columns have the same sign
    published = {row.method: row.values for row in job.table.rows}
    gains = [published["CLDL(3,2,4)"][c] - value for c, value in published["GAL"].items()]
    signs = sum(gain > 0 for gain in gains)
    assert 8 < signs < 16
    assert f"| GAL | {np.mean(gains):+.1f} | +20.0 | +20.0 | {signs} of 16 |" in text
    assert "faithful: CLDL(3,2,4) (71.0) > GAL (51.0)" in text
    assert "a quirk" in text


def test_an_archive_that_the_split_does_not_fit(monkeypatch):
    few = synthetic("fashion-mnist").head(64, np.arange(9_999))
    monkeypatch.setattr(_data, "load", lambda *args: few)
    with pytest.raises(ValueError, match=r"split is of .* 10000 test images, .* there are 9999"):
        planned("cldl", "VIII")
    [part] = planned("ncen", "II")[:1]
    assert part.of_images == 9_999


def test_gains_that_can_be_told_apart():
    def line(name, published, measured):
        number = _measured.Number((measured, measured), 10_000)
        cell = _measured.Cell(Column("PGD", 0.1), published, number, number, number)
        return _measured.Line(_plan.Row(name, None, {}), [cell], measured=True)

    best = line("CLDL", 50.0, 40.0)
    one, two, three, four = _measured.claims(
        [
            best,
            line("GAL", 48.8, 41.0),
            line("ADP", 30.0, 20.0),
            line("Vanilla", None, 10.0),
            line("TRS", 48.4, 40.0),
        ],
        best,
    )
    # the spread is 1.0 points here, that of a difference 1.4
    assert one.published == pytest.approx(1.2)
    assert (one.faithful, one.signs, one.within) == (-1.0, 0, 1)
    assert (two.published, two.faithful, two.signs, two.within) == (20.0, 20.0, 1, 0)
    assert (three.published, three.sound, three.n) == (None, 30.0, 0)
    assert four.published == pytest.approx(1.6)
    assert four.within == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --paper and either --table or --figure"),
        (["--paper", "ceat", "--table", "1", "--figure", "3"], "either --table or --figure"),
        (["--paper", "cldl", "--table", "VIII", "--budget", "2"], "--budget must be above 0"),
    ],
)
def test_wrong_commands(given, message):
    with pytest.raises(SystemExit, match=message):
        command.main(given)


def test_wrong_numbers_of_threads(capsys):
    with pytest.raises(SystemExit):
        command.main(["--list", "--threads", "-1"])
    assert "--threads must be 0 or more; got -1" in capsys.readouterr().err


def test_list_names_everything(caplog):
    with caplog.at_level("INFO"):
        command.main(["--list"])
    assert "XIII, XIV" in caplog.text
    assert "figures 3, weights, radii" in caplog.text


def arguments(folder, *further):
    small = ["--epochs", "1", "--seeds", "1", "--images", "10", "--device", "cpu"]
    return [*further, *small, "--work", str(folder)]


@pytest.mark.slow
def test_a_table_runs_from_nothing_and_only_once(tmp_path, results, monkeypatch):
    try:
        load_fashion_mnist("test", download=False)
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    words = ["--paper", "cldl", "--table", "VIII", "--methods", "ADP", "CLDL(3,2,4)"]
    given = arguments(tmp_path, *words, "--train-images", "512", "--ablations")
    command.main(given)
    first = json.loads((results / "cldl_VIII.json").read_text())
    rows = {row["method"]: row for row in first["rows"]}
    assert rows["GAL"]["seeds"] == "not run"
    for name in ("ADP", "CLDL(3,2,4)", "Vanilla + noise + LeakyReLU"):
        assert 0 <= float(rows[name]["sound"]) <= float(rows[name]["of all images"])
        assert rows[name]["white box, eps 0.1"]
    assert "Which loss" in first["text"]
    assert "Fashion-MNIST, 3 x lenet5, at 1 of 30 epochs" in first["title"]

    def unwanted(*args, **kwargs):
        raise AssertionError("done already")

    monkeypatch.setattr(_store, "train", unwanted)
    monkeypatch.setattr(_cells, "_measure", lambda unit, models, *rest: models and unwanted())
    command.main(given)
    assert json.loads((results / "cldl_VIII.json").read_text())["numbers"] == first["numbers"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    "words",
    [
        "--paper ncen --table II --dataset cifar10 --network resnet20 --methods BL NCEn",
        "--paper ceat --table 4 --methods CEAT[none] CEAT[L_adv]",
        "--paper ceat --figure 3 --methods Baseline DVERGE",
    ],
    ids=["ncen-II", "ceat-4", "ceat-figure-3"],
)
def test_other_papers_run(words, tmp_path, results):
    command.main(arguments(tmp_path, *words.split(), "--train-images", "64"))
    [file] = results.glob("*.json")
    measured = [row for row in json.loads(file.read_text())["rows"] if row["seeds"] != "not run"]
    assert len(measured) == 2
    # DVERGE has nothing right after so little training
    assert all(0 <= float(row["faithful"] or 0) <= 100 for row in measured)


@pytest.mark.slow
@pytest.mark.usefixtures("small_images")
def test_costs_are_timed_and_remembered(tmp_path, monkeypatch):
    job = task("cldl", "VIII", TINY, methods=["ADP"])
    shop = _run.Workshop(tmp_path, "cpu")
    rows = _run.dry_run(job, shop)
    named = {row["what"].partition(": ")[2]: row for row in rows[:-1]}
    assert named["train ADP, 1 epochs"]["number"] == 1
    assert all(row["seconds each"] >= 0 for row in named.values())
    assert sum(row["seconds"] for row in rows[:-1]) == rows[-1]["seconds"]
    monkeypatch.setattr(_costs, "_clock", lambda: 1 / 0)
    assert _run.dry_run(job, shop) == rows
