"""Reproduction of the papers' figures: what is measured for them, and what is drawn."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_reproduction import TINY, fill, task

from benchmarks.reproduce import _drawing, _figures, _measured, _plan, _run
from benchmarks.reproduce._published import Column
from robust_ensembles.attacks import MIM

pytestmark = pytest.mark.usefixtures("one_thread", "small_images")


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are when they would be saved."""
    pytest.importorskip("matplotlib")
    kept = []
    monkeypatch.setattr(_drawing, "_save", lambda figure, part, path: kept.append(figure))
    yield kept
    from matplotlib import pyplot

    pyplot.close("all")


def planned(paper, number):
    [part] = _plan.parts(_figures.find(paper, number).table, TINY)
    return part


def line(name, cells, clean=None):
    """A measured row; cells are column, faithful and sound."""

    def number(value):
        return None if value is None else _measured.Number((value,), 100)

    made = [_measured.Cell(c, None, number(f), None, number(s)) for c, f, s in cells]
    return _measured.Line(_plan.Row(name, None, {}), made, clean=number(clean), measured=True)


@pytest.mark.parametrize(
    ("paper", "number"),
    [(paper, number) for paper in ("ncen", "ceat") for number in _figures.numbers(paper)],
)
def test_figures_are_drawn(paper, number, tmp_path, results):
    pytest.importorskip("matplotlib")
    job = task(paper, number, TINY, _figures.find(paper, number))
    shop = _run.Workshop(tmp_path, "cpu")
    fill(job, shop, lambda name, seed: 0.4 + len(name) / 100)
    _run.run(job, shop, so_far=True)
    name = f"{paper}_{job.table.name}"
    assert 1000 < (results / f"{name}.png").stat().st_size < 300_000
    payload = json.loads((results / f"{name}.json").read_text())
    assert job.table.title in payload["title"]


def test_what_a_figure_shows_is_not_made_up():
    with pytest.raises(ValueError, match=r"CEAT's Fig. 4 prints no numbers.*weights"):
        _figures.find("ceat", "4")
    with pytest.raises(ValueError, match="has no figure '9' here; it has 3, 4"):
        _figures.find("ncen", "9")


# --------------------------------------------------------------------------------- what is tried


def tried(calls):
    """Instead of attacks: numbers unequal by source, target, attack and loss."""

    def matrix(estimator, X, y, *, attack, measure, samples, include_ensemble):
        calls.append((type(attack).__name__, attack.eps, measure, samples, include_ensemble))
        base = 0.1 * isinstance(attack, MIM) + 0.3 * (attack.loss != "cross_entropy")
        values = base + np.arange(9).reshape(3, 3) / 100
        return SimpleNamespace(values=values, n_samples=50 + np.arange(9).reshape(3, 3))

    return matrix


@pytest.mark.parametrize(
    ("paper", "eps", "names", "measure", "samples"),
    [
        ("ncen", 0.05, ("PGD", "MI-FGSM"), "accuracy", "correct_for_source"),
        ("ceat", 0.031, ("",), "success_rate", "correct_for_pair"),
    ],
)
def test_matrices_are_of_one_radius_and_of_some_images(
    paper, eps, names, measure, samples, tmp_path, results, monkeypatch
):
    calls = []
    monkeypatch.setattr(_figures, "transferability_matrix", tried(calls))
    monkeypatch.setattr(_drawing, "_save", lambda *args: None)
    pytest.importorskip("matplotlib")
    job = task(paper, "3", TINY, _figures.find(paper, "3"))
    shop = _run.Workshop(tmp_path, "cpu")
    [part] = job.parts
    [unit] = job.units(part, list)
    assert unit.name.endswith(f"-eps{eps}")
    outcome, _ = unit.run({model.key: None for model in part.targets})
    for key, rows in outcome.items():
        shop.cells.write(key, unit.name, rows, 1.0, [])
    assert {call[1:] for call in calls} == {(eps, measure, samples, False)}
    _run.run(job, shop, so_far=True)
    payload = json.loads((results / f"{paper}_fig3.json").read_text())
    [numbers] = payload["numbers"]
    cells = {cell["attack"]: cell for cell in numbers["cells"]}
    for k, name in enumerate(names):
        for i, j in itertools.product(range(3), repeat=2):
            cell = cells[f"{name} {i + 1}->{j + 1}".strip()]
            value = 10 * k + 3 * i + j
            assert cell["faithful"] == pytest.approx([value])
            assert cell["sound"] == pytest.approx([30 + value])
            assert cell["eps"] == eps
            assert cell["faithful, of all images"] is None
    assert all("of all images" not in row for row in payload["rows"])
    text = (results / f"{paper}_fig3.md").read_text()
    assert "of all images" not in text
    method = payload["rows"][0]["method"]
    attack = f"{names[0]} 2->3".strip()
    spread = _measured.Number((5.0,), 55).spread
    assert f"| {method} | {attack} {eps} |" in text
    assert f"5.0 ± {spread:.1f}" in text


def test_steps_grow_with_the_radius(monkeypatch):
    asked = []

    def ceat(estimators, X, y, **settings):
        asked.append(settings)
        return SimpleNamespace(rows=[], quirks=[])

    monkeypatch.setattr(_figures.protocols, "ceat", ceat)
    for unit in _figures.find("ceat", "radii").units(planned("ceat", "radii")):
        unit.run({})
    assert [settings["eps"] for settings in asked] == [0.008, 0.016, 0.031, 0.047, 0.062]
    for settings in asked:
        assert settings["attacks"] == ["PGD"]
        assert settings["step_size"] == pytest.approx(0.007 * settings["eps"] / 0.031)


# ---------------------------------------------------------------------------------- what is drawn


def test_rows_of_heat_maps_are_sources(drawn):
    part = planned("ncen", "3")
    names = [("PGD", 0), ("MI-FGSM", 40)]
    cells = [
        (Column(f"{name} {i + 1}->{j + 1}", 0.05), base + 3 * i + j, 90.0)
        for name, base in names
        for i, j in itertools.product(range(3), repeat=2)
    ]
    del cells[1]  # PGD 1->2 is not measured
    lines = [line("BL", cells), line("NCEn", [(c, f + 10, s) for c, f, s in cells])]
    _drawing.heat_maps(part, lines, Path("unused"))
    found = {ax.get_title(): ax for ax in drawn[0].axes}
    assert list(found) == ["BL PGD", "NCEn PGD", "BL MI-FGSM", "NCEn MI-FGSM"]
    for (method, more), (name, base) in itertools.product([("BL", 0), ("NCEn", 10)], names):
        ax = found[f"{method} {name}"]
        expected = base + more + np.arange(9.0).reshape(3, 3)
        if name == "PGD":
            expected[0, 1] = np.nan
        shown = np.ma.filled(ax.images[0].get_array().astype(float), np.nan)
        np.testing.assert_allclose(shown, expected)
        assert ax.get_ylabel().startswith("Source")


@pytest.mark.parametrize(
    ("paper", "number", "name"), [("ncen", "4", "NCEn"), ("ceat", "weights", "CEAT")]
)
def test_contours_are_over_the_first_and_the_second_weight(paper, number, name, drawn, monkeypatch):
    from matplotlib.axes import Axes

    surfaces = []
    original = Axes.contourf

    def contourf(self, x, y, z, **settings):
        surfaces.append((x, y, z.copy()))
        return original(self, x, y, z, **settings)

    monkeypatch.setattr(Axes, "contourf", contourf)
    column = Column("PGD", 0.1)
    grid = [(a, b, 20 * a + b) for a in (1.0, 2.0) for b in (3.0, 4.0, 5.0)]
    lines = [line(f"{name}({a:g},{b:g})", [(column, v, v / 2)], 50.0) for a, b, v in grid]
    _drawing.contours(planned(paper, number), lines, Path("unused"))
    # NCEn's faithful score is the product with the clean accuracy
    factors = {"faithful": 0.5 if paper == "ncen" else 1.0, "sound": 0.5}
    for ax, (x, y, z), (way, factor) in zip(drawn[0].axes, surfaces, factors.items(), strict=False):
        assert ax.get_title() == way
        assert (x, y) == ([1.0, 2.0], [3.0, 4.0, 5.0])
        expected = factor * np.array([[20 * a + b for a in x] for b in y])
        np.testing.assert_allclose(z, expected)
        shown = {text.xy: text.get_text() for text in ax.texts}
        assert shown == {(a, b): f"{factor * v:.1f}" for a, b, v in grid}
        first, second = ("lambda_cos", "lambda_norm") if paper == "ncen" else ("lambda", "mu")
        assert (ax.get_xlabel(), ax.get_ylabel()) == (first, second)
    assert len(surfaces) == 2


def test_scores():
    ncen, ceat = planned("ncen", "4"), planned("ceat", "weights")
    cells = [
        (Column("clean", 0.0), 90.0, 80.0),
        (Column("PGD", 0.1), 40.0, 20.0),
        (Column("MIM", 0.1), 60.0, 22.0),
        (Column("BIM", 0.1), None, None),
    ]
    some = line("NCEn(1,2)", cells, clean=80.0)
    assert _drawing._score(ncen, some, "faithful") == pytest.approx(40.0)
    assert _drawing._score(ncen, some, "sound") == pytest.approx(21.0)
    assert _drawing._score(ceat, some, "faithful") == pytest.approx(50.0)
    assert np.isnan(_drawing._score(ceat, line("CEAT(1,2)", cells[-1:]), "sound"))


def test_curves_are_over_eps(drawn):
    cells = [(Column("PGD20", eps), 100 - 900 * eps, 80 - 900 * eps) for eps in (0.01, 0.05)]
    _drawing.curves(planned("ceat", "radii"), [line("ADP", cells)], Path("unused"))
    for ax, way, start in zip(drawn[0].axes, ("faithful", "sound"), (100, 80), strict=True):
        [curve] = ax.lines
        assert (ax.get_title(), ax.get_xlabel()) == (way, "eps")
        np.testing.assert_allclose(curve.get_xdata(), [0.01, 0.05])
        np.testing.assert_allclose(curve.get_ydata(), [start - 9, start - 45])
