"""The benchmarks of speed: the reference computes what the estimators do, and all of them run."""

import json

import pytest
import torch

from benchmarks import _report, _timing, files_entered, overhead, roofline, scaling, training
from benchmarks._cases import (
    METHODS,
    NETWORKS,
    Network,
    OwnStep,
    make_estimator,
    random_batch,
)
from robust_ensembles.modules import LeNet5, default_module

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"tiny": NETWORKS["tiny"], "lenet5": Network(LeNet5, (1, 12, 12), 6)}
# a random start is another one in each: both walk from x itself
WALK = {"n_steps": 3, "random_start": False}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    return tmp_path


def both_ways(method, network, accelerate):
    """The two steps in float64, from the same weights, with fresh optimizers."""
    estimator = make_estimator(method, network, accelerate=accelerate)
    adversarial = method == "adversarial"
    if adversarial:
        estimator.set_params(**{f"attack__{name}": value for name, value in WALK.items()})
    own = OwnStep(estimator, network)
    own.net.module_.double()
    if own.net.has_auxiliary_:
        own.net.auxiliary_.double()
    own.net.optimizer_.state.clear()
    return own, own.released(method, **(WALK if adversarial else {}))


def parameters(*owners):
    return [p for owner in owners if owner is not None for p in owner.parameters()]


@pytest.mark.parametrize("accelerate", ["none", "auto"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", METHODS)
def test_the_released_step_computes_what_the_estimator_computes(method, name, accelerate):
    network = SMALL[name]
    own, released = both_ways(method, network, accelerate)
    auxiliary = own.net.auxiliary_ if own.net.has_auxiliary_ else None
    ours = parameters(*own.net.module_, auxiliary)
    theirs = parameters(*released.members, released.auxiliary)
    before = [p.detach().clone() for p in ours]
    for seed in (1, 2):
        batch = random_batch(network, seed=seed)
        x = batch.x.double()
        (loss,) = own.run([batch._replace(x=x)])
        close(loss, released(x, batch.y))
        for mine, other in zip(ours, theirs, strict=True):
            close(mine.grad, other.grad)
            close(mine.detach(), other.detach())
    moved = sum(not torch.equal(p, q) for p, q in zip(ours, before, strict=True))
    assert moved == len(ours)


def close(mine, other):
    torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_every_regularizer_is_in_the_released_step():
    """Equal gradients would prove little if a term had none."""
    network = SMALL["lenet5"]
    weights = {"gal": "lam", "ncen": "lambda_cos", "adp": "beta", "cldl": "beta"}
    for method, weight in weights.items():
        batch = random_batch(network)
        gradients = []
        for value in (0.0, 1.0):
            own = OwnStep(make_estimator(method, network), network)
            released = own.released(method, **{weight: value})
            released(batch.x, batch.y)
            gradients.append(
                torch.cat([p.grad.flatten() for p in released.members[0].parameters()])
            )
        assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_every_case_with_a_bar_has_one_of_the_goals():
    bars = {(case.method, case.network): case.bar for case in training.CASES if case.bar}
    assert bars == {
        ("cldl", "resnet20"): 3.3,
        ("cldl", "lenet5"): 2.6,
        ("gal", "resnet20"): 1.8,
        ("ncen", "resnet20"): 1.45,
        ("adversarial", "resnet20"): 1.35,
    }


def test_training_writes_a_row_for_each_case(results):
    setting = training.Setting(rounds=1, steps=2, accelerate=("none", "auto", "vmap"))
    rows = training.measure([training.Case("gal", "tiny", 1.8)], setting)
    training.write(rows, setting)
    (row,) = json.loads((results / "training.json").read_text())["rows"]
    assert row["bar"] == 1.8
    assert 0 < row["auto (s)"] < 5
    assert "| gal | 3 x tiny | 6 |" in (results / "training.md").read_text()


def test_overhead_writes_a_row_for_each_case(results):
    rows = overhead.measure([overhead.Case("gal", "tiny", 2)], rounds=1)
    overhead.write(rows, rounds=1)
    (row,) = json.loads((results / "overhead.json").read_text())["rows"]
    assert row["fit (s)"] > 0
    assert row["bare loop (s)"] > 0


@pytest.mark.parametrize("method", ["vanilla", "gal", "cldl"])
def test_the_bare_loop_takes_the_steps_that_fit_takes(method):
    """What it leaves out changes nothing."""
    network = SMALL["lenet5"]
    own, _ = both_ways(method, network, "auto")
    batches = [random_batch(network, seed=seed) for seed in (1, 2)]
    batches = [batch._replace(x=batch.x.double()) for batch in batches]
    trained = overhead.bare_loop(own, batches)
    own.run(batches)
    for mine, other in zip(own.net.module_.parameters(), trained.parameters(), strict=True):
        close(mine.detach(), other.detach())


def test_scaling_writes_slopes_and_a_small_picture(results):
    pytest.importorskip("matplotlib")
    axes = [axis for axis in scaling.AXES if axis.label in ("members", "attack steps")]
    quick = [scaling.replace(axis, values=axis.quick) for axis in axes]
    rows = scaling.measure(quick, NETWORKS["tiny"], rounds=1)
    scaling.write(rows, rounds=1)
    table = json.loads((results / "scaling.json").read_text())
    assert {row["cost against"] for row in table["rows"]} == {"members", "attack steps"}
    assert len(table["points"]) == len(rows) == 2 * 5
    assert 0 < (results / "scaling.png").stat().st_size < 200_000


def test_slopes_are_exponents():
    line = [{"value": n, "seconds": 0.1 * n**2, "MiB": None} for n in (1, 2, 5)]
    assert scaling.exponent(line, "seconds") == 2
    assert scaling.exponent(line, "MiB") is None


def test_counts_of_a_product_are_exact():
    a, b = torch.rand(3, 5), torch.rand(5, 7)
    counter = roofline.count(lambda: (a @ b).view(21))
    assert counter.flops == 2 * 3 * 5 * 7
    assert counter.bytes == 4 * (15 + 35 + 21)
    assert counter.operations == 2


def test_roofline_writes_all_ways(results):
    machine = roofline.Machine(flops=1e9, bandwidth=1e9)
    rows = roofline.measure(["gal"], "tiny", machine, rounds=1)
    roofline.write(rows, machine, rounds=1)
    released, none, auto = json.loads((results / "roofline.json").read_text())["rows"]
    assert [row["way"] for row in (released, none, auto)] == ["released", "none", "auto"]
    assert released["GFLOP"] > 1.2 * none["GFLOP"] >= 1.2 * auto["GFLOP"]
    assert released["ATen operations"] > none["ATen operations"] > auto["ATen operations"]


def test_measured_peaks_are_positive():
    machine = roofline.Machine.measure(size=64, mebibytes=1, repeats=1)
    assert machine.flops > 0
    assert machine.bandwidth > 0


def test_contenders_take_turns():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    measured = _timing.interleaved(contenders, rounds=3, warm_up=1)
    assert calls[:3] == ["a", "b", "c"]
    assert "".join(calls[-9:]) == "abcbcacab"
    assert all(len(measurement.seconds) == 3 for measurement in measured.values())


def test_ratios_are_those_of_each_round():
    reference = _timing.Measurement([2.0, 3.0, 8.0], None)
    faster = _timing.Measurement([1.0, 2.0, 2.0], None)
    assert faster.times_faster_than(reference) == (2.0, 1.5, 4.0)


@pytest.mark.parametrize(
    ("module", "methods"),
    [
        (training, None),
        (overhead, None),
        (roofline, ["gal"]),
        pytest.param(roofline, roofline.METHODS, marks=pytest.mark.slow),
    ],
)
def test_quick_runs_write_no_files(module, methods, results, monkeypatch):
    if methods is not None:
        monkeypatch.setattr(module, "METHODS", methods)
    arguments = {training: ["--quick", "--methods", "vanilla"]}.get(module, ["--quick"])
    module.main(arguments)
    assert not list(results.iterdir())


def test_files_entered_are_the_package_s_own():
    entered = files_entered.Entered()
    with entered.watching():
        default_module((1, 8, 8))
    default_module((1, 8, 8))
    own = entered.own()
    assert own
    assert all((files_entered.PACKAGE / path).exists() for path in own)


def test_one_column_of_files_entered_stands_beside_the_other(results):
    files_entered.write("before", {"a": 3, "b": 1}, {"a": ["x.py"]})
    files_entered.write("after", {"a": 2, "c": 5}, {"a": []})
    payload = json.loads((results / "files_entered.json").read_text())
    assert payload["rows"] == [
        {"what": "a", "before": 3, "after": 2},
        {"what": "b", "before": 1, "after": "-"},
        {"what": "c", "before": "-", "after": 5},
    ]
    assert payload["files"] == {"before": {"a": ["x.py"]}, "after": {"a": []}}


@pytest.mark.slow
def test_files_entered_runs(results):
    files_entered.main(["--quick", "--list"])
    assert not list(results.iterdir())
