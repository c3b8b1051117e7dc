"""Reproduction of the papers' tables: what is measured, and what of it is compared."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_reproduction import TINY, planned, task

from benchmarks.reproduce import _measured, _plan, _run, _tables, _units
from benchmarks.reproduce._cells import Cells, Unit
from benchmarks.reproduce._published import Column

pytestmark = pytest.mark.usefixtures("one_thread", "small_images")


def number(value, n=10_000):
    return None if value is None else _measured.Number((value,), n)


def line(name, published, measured, models=()):
    """A row with a number for each attack; None is not measured."""
    cells = [
        _measured.Cell(Column(attack, 0.1), printed, number(value), number(value), number(value))
        for attack, printed, value in zip(("PGD", "MIM", "AA"), published, measured, strict=True)
    ]
    anything = any(value is not None for value in measured)
    return _measured.Line(_plan.Row(name, None, {}, list(models)), cells, measured=anything)


# ------------------------------------------------------------------------------ what is compared


def test_rows_are_compared_by_what_all_of_them_have():
    [part] = planned("ceat", "4")
    lines = [
        line("ADP", (20.0, 30.0, 1.0), (50.0, 60.0, 10.0)),
        line("GAL", (22.0, 28.0, 9.0), (50.0, 60.0, None)),
        line("Vanilla", (None, None, None), (0.0, 2.0, 4.0)),
        line("TRS", (30.0, 40.0, 50.0), (None, None, None)),
    ]
    assert _measured.shared(lines) == [Column("PGD", 0.1), Column("MIM", 0.1)]
    rows, text = _tables.sections(part, lines)
    by_name = {row["method"]: row for row in rows}
    assert by_name["ADP"]["faithful"] == by_name["GAL"]["faithful"] == "55.0"
    assert (by_name["ADP"]["published"], by_name["ADP"]["difference"]) == ("25.0", "+30.0")
    assert by_name["ADP"]["within the spread"] == "0 of 2"
    assert by_name["TRS"]["published"] == "35.0"
    assert "- published: TRS (35.0) > ADP (25.0) > GAL (25.0)\n" in text
    assert "- faithful: ADP (55.0) > GAL (55.0) > Vanilla (1.0)\n" in text
    assert "means over the 2 of 3 attacks and radii that every measured row has" in text
    adp, vanilla = lines[0], lines[2]
    [claim] = [c for c in _measured.claims(lines, adp) if c.other == "Vanilla"]
    assert claim.faithful == 54.0
    assert _measured.claims([adp, vanilla], adp)[0].faithful == 38.0


def test_nothing_in_common_is_not_compared():
    [part] = planned("ceat", "4")
    lines = [
        line("ADP", (20.0, 30.0, 1.0), (50.0, 60.0, None)),
        line("GAL", (22.0, 28.0, 9.0), (None, None, 40.0)),
    ]
    assert _measured.shared(lines) == []
    rows, text = _tables.sections(part, lines)
    assert [row["faithful"] for row in rows] == ["", ""]
    assert "Best to worst" not in text


def test_all_attacks_where_all_are_measured():
    [part] = planned("ceat", "4")
    lines = [line("ADP", (20.0, 30.0, 1.0), (50.0, 60.0, 10.0))]
    rows, text = _tables.sections(part, lines)
    assert rows[0]["faithful"] == "40.0"
    assert "Percent; means over all attacks and radii, which" in text


@pytest.mark.parametrize(
    ("measured", "column", "footer"),
    [
        ([2, 2, 2], 3, "Seeds: [0, 1, 2]. "),
        ([2, 1, 0], "1 of 3", "Seeds: [0] of [0, 1, 2]. "),
        ([1, 1, 2], "1 of 3", "Seeds: [2] of [0, 1, 2]. "),
        ([1, 0, 0], "0 of 3", "Seeds: [] of [0, 1, 2]. "),
        ([0, 0, 0], "not run", "Seeds: [] of [0, 1, 2]. "),
    ],
)
def test_seeds_count_when_complete(measured, column, footer, tmp_path, results, monkeypatch):
    job = task("ceat", "4", replace(TINY, seeds=3), methods=["CEAT[none]"])
    units = [Unit("one", None), Unit("two", None)]
    monkeypatch.setattr(_run.Task, "units", lambda self, part, surrogates: units)
    shop = _run.Workshop(tmp_path, "cpu")
    models = next(row.models for row in job.parts[0].rows if row.models)
    attacked = {"attack": "MIM", "eps": 0.031, "metric": "unconditional", "published": True}
    for model, n in zip(models, measured, strict=True):
        for unit in units[:n]:
            row = {**attacked, "faithful": 0.5, "sound": 0.25, "n_samples": 12}
            shop.cells.write(model.key, unit.name, [row], 1800.0, [])
    _run.run(job, shop, so_far=True)
    payload = json.loads((results / "ceat_4.json").read_text())
    row = next(row for row in payload["rows"] if row["method"] == "CEAT[none]")
    assert row["seeds"] == column
    assert footer in payload["about"]
    # half an hour for each number
    assert f"and measured in {sum(measured) / 2:.2f}, on" in payload["about"]


# ------------------------------------------------------------------------------------ the losses


def losses_line(tmp_path, *seeds):
    [part] = planned("cldl", "VIII", replace(TINY, seeds=len(seeds)), methods=["ADP"])
    part = replace(part, images=part.images._replace(y_test=np.zeros(500)))
    row = next(row for row in part.rows if row.models)
    cells = Cells(tmp_path)
    for model, content in zip(row.models, seeds, strict=True):
        rows = [{"losses": "cross-entropy", "eps": 0.1, **content}]
        cells.write(model.key, "losses", rows, 1.0, [])
    [made] = [one for one in _measured.lines(part, [Unit("losses", None)], cells) if one.row is row]
    return made.losses


@pytest.mark.parametrize("kept", [{}, {"n_samples": 434}])
def test_conditional_numbers_spread_by_what_they_are_fractions_of(tmp_path, kept):
    content = {"conditional": 141 / 434, "unconditional": 141 / 500, **kept}
    found = losses_line(tmp_path, content)["cross-entropy"]
    assert found == _measured.Number((100 * 141 / 434,), 434)
    assert found.spread == pytest.approx(200 * math.sqrt(141 / 434 * 293 / 434 / 434))


def test_the_fewest_images_of_several_seeds(tmp_path):
    some = {"conditional": 0.5, "unconditional": 0.4, "n_samples": 400}
    fewer = {"conditional": 0.25, "unconditional": 0.19, "n_samples": 380}
    none = {"conditional": math.nan, "unconditional": 0.0, "n_samples": 0}
    found = losses_line(tmp_path, some, fewer, none)["cross-entropy"]
    assert found == _measured.Number((50.0, 25.0), 380)


def test_nothing_withstood_has_no_spread(tmp_path):
    found = losses_line(tmp_path, {"conditional": 0.0, "unconditional": 0.0})["cross-entropy"]
    assert (found.mean, found.spread) == (0.0, 0.0)


def test_each_loss_is_measured_by_itself(monkeypatch):
    [part] = planned("cldl", "VIII")
    clean = np.array([1, 1, 1, 1, 0], bool)
    masks = {
        "cross_entropy": np.array([1, 1, 0, 0, 0], bool),
        "released_cw": np.array([1, 1, 1, 0, 0], bool),
        "cw_margin": np.array([0, 0, 0, 1, 0], bool),
    }
    target = SimpleNamespace(name="a", right=clean.copy)
    monkeypatch.setattr(_units, "named_targets", lambda *args: [target])
    monkeypatch.setattr(_units, "_withstood", lambda targets, sources, eps, loss: [masks[loss]])
    rows, _ = _units._loss_unit(part, list).run({})
    found = {row["losses"]: row for row in rows["a"]}
    assert {label: row["unconditional"] for label, row in found.items()} == {
        "cross-entropy": 0.4,
        "released CW": 0.6,
        "CW margin": 0.2,
        "cross-entropy and released CW": 0.4,
        "cross-entropy and CW margin": 0.0,
    }
    assert found["CW margin"]["conditional"] == 0.25
    assert {row["n_samples"] for row in rows["a"]} == {4}
    assert {row["eps"] for row in rows["a"]} == {0.1}


def test_attacks_of_a_loss_are_on_that_loss(monkeypatch):
    asked = []

    def attacks(eps, losses, seeds, *, clip_values):
        asked.append((eps, losses, seeds, clip_values))
        return {"FGSM": ["weak"], "PGD": ["strong"]}

    monkeypatch.setattr(_units, "transfer_attacks", attacks)
    broken = {"weak": np.array([0, 0, 1], bool), "strong": np.array([1, 0, 0], bool)}
    clean = np.ones(3, bool)
    target = SimpleNamespace(right=clean.copy, broken=broken.get)
    source = SimpleNamespace(last_iterates=lambda attack: attack)
    [mask] = _units._withstood([target], [source], 0.15, "cw_margin")
    assert asked == [(0.15, ["cw_margin"], [0], (0.0, 1.0))]
    np.testing.assert_array_equal(mask, [False, True, False])
    assert clean.all()


def test_the_white_box_is_pgd20_at_the_second_radius(monkeypatch):
    [part] = planned("cldl", "VIII")
    asked = []

    def withstood(attacks):
        asked.append([(attack.eps, attack.n_steps, attack.loss) for attack in attacks])
        return np.array([1, 0, 0, 0], bool)

    target = SimpleNamespace(name="a", withstood=withstood)
    monkeypatch.setattr(_units, "named_targets", lambda *args: [target])
    rows, _ = _units._white_box_unit(part).run({})
    assert rows == {"a": [{"white box": 0.25, "eps": 0.1}]}
    [attacks] = asked
    assert [attack[:2] for attack in attacks] == [(0.1, 20)] * 2
    assert len({attack[2] for attack in attacks}) == 2


# ---------------------------------------------------------------------------- what a paper claims


def test_the_best_is_the_papers_own_with_the_highest_published_mean():
    [part] = planned("cldl", "X")
    lines = [
        line("CLDL(3,0,0)", (20.0, 30.0, 1.0), (50.0, 60.0, 70.0)),
        line("CLDL(3,4,4)", (40.0, 30.0, 2.0), (10.0, 10.0, 10.0)),
        line("TRS", (90.0, 90.0, 90.0), (90.0, 90.0, 90.0)),
        line("CLDL(3,9,9)", (80.0, 80.0, 80.0), (None, None, None)),
    ]
    printed = [replace(one, row=replace(one.row, published={"some": 1.0})) for one in lines]
    assert _tables._best(part, printed) is printed[1]
    assert _tables._best(part, printed[2:]) is None


# -------------------------------------------------------------------------- what could not be had


def test_rows_go_on_without_failed_models():
    [part] = planned("ceat", "4", replace(TINY, seeds=3), ablations=True)
    first, second = part.rows[:2]
    failed = {model.key: f"seed {i}" for i, model in enumerate(first.models) if i > 0}
    left = _run._without(part, failed)
    assert left.rows[0].models == first.models[:1]
    assert left.rows[0].note == "2 of 3 trainings failed: seed 1"
    assert left.rows[1] == second
    assert not {model.key for model in left.models} & set(failed)


def test_a_failed_surrogate_ends_a_table():
    [part] = planned("cldl", "VIII")
    with pytest.raises(RuntimeError, match=r"a surrogate could not be trained: .*infinite"):
        _run._without(part, {part.surrogates[1].key: "infinite"})
