"""Displays hold what the functions behind them compute, and draw it with labels."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from robust_ensembles.attacks import FGSM, PGD, External, UniformNoise, WorstCase
from robust_ensembles.inspection import (
    AttackComparisonDisplay,
    DecisionRegionDisplay,
    RobustnessCurveDisplay,
    TransferabilityDisplay,
    transferability_matrix,
)
from robust_ensembles.metrics import robust_accuracy_score, robust_mask
from robust_ensembles.modules import Ensemble

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

W = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X @ W.numpy() > 0).astype(int)
Y[:5] = 1 - Y[:5]  # misclassified


def linear(weight=W):
    """Class 1 where w.x is positive."""
    layer = nn.Linear(len(weight), 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
    return layer


def ensemble():
    return Ensemble([linear(), linear(W.flip(0))])


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


DRAWN = {
    "transferability": lambda **to: TransferabilityDisplay.from_estimator(
        ensemble(), X, Y, attack=FGSM(eps=0.3), **to
    ),
    "curve": lambda **to: RobustnessCurveDisplay.from_estimators(
        {"a": linear(), "b": ensemble()}, X, Y, attack=FGSM(), eps=[0, 0.3], **to
    ),
    "comparison": lambda **to: AttackComparisonDisplay.from_estimators(
        {"a": linear(), "b": ensemble()}, X, Y, attacks=["fgsm", "noise"], eps=0.3, **to
    ),
    "regions": lambda **to: DecisionRegionDisplay.from_estimator(
        linear(), X, Y, attack=FGSM(eps=2.0), sample=7, n_grid=5, **to
    ),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_conventions_of_displays(draw):
    ax = plt.figure().add_subplot()
    display = draw(ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert ax.get_ylabel()
    if ax.get_legend() is None:
        assert len(ax.child_axes) == 1  # the colour bar
    else:
        entries = [text.get_text() for text in ax.get_legend().get_texts()]
        assert len(set(entries)) == len(entries) > 1
    # a second time, on axes of its own
    assert display.plot() is display
    assert display.ax_ is not ax
    display.plot(ax)
    assert display.ax_ is ax
    ax.figure.canvas.draw()
    assert draw().ax_ is not ax


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_matplotlib_is_missed_before_any_work(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(FGSM, "__call__", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        draw()
    held = RobustnessCurveDisplay([0, 1], [[1, 0]], names=["a"])  # arrays need none
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        held.plot()


def test_transferability_shows_the_matrix():
    settings = {"attack": FGSM(eps=0.3), "samples": "all", "measure": "accuracy"}
    matrix = transferability_matrix(ensemble(), X, Y, **settings)
    display = TransferabilityDisplay.from_estimator(ensemble(), X, Y, **settings)
    for shown in (display, TransferabilityDisplay.from_matrix(matrix)):
        np.testing.assert_array_equal(shown.values, matrix.values)
        assert shown.targets == ["member 0", "member 1", "ensemble"]
        assert [t.get_text() for t in shown.ax_.get_xticklabels()] == shown.targets
        assert [t.get_text() for t in shown.ax_.get_yticklabels()] == shown.sources
        assert shown.text_[1, 0].get_text() == f"{100 * matrix.values[1, 0]:.1f}"
    (bar,) = display.ax_.child_axes
    assert bar.get_ylabel() == "Accuracy under attack (%)"
    assert not display.plot(colorbar=False).ax_.child_axes
    assert display.plot(values_format=".0f").text_[1, 0].get_text() == (
        f"{100 * matrix.values[1, 0]:.0f}"
    )


def test_empty_cells_say_so():
    display = TransferabilityDisplay([[0.5, np.nan]], sources=["a"], targets=["a", "b"]).plot()
    assert display.text_[0, 1].get_text() == "no\nsamples"


@pytest.mark.parametrize("cmap", ["viridis", "Greys"])
def test_numbers_are_legible_on_every_colour(cmap):
    values = np.linspace(0, 1, 41)[None]
    names = [str(i) for i in range(41)]
    display = TransferabilityDisplay(values, sources=["a"], targets=names).plot(cmap=cmap)
    cells = matplotlib.colormaps[cmap](values[0])[:, :3]
    linear_light = np.where(cells <= 0.04045, cells / 12.92, ((cells + 0.055) / 1.055) ** 2.4)
    luminance = linear_light @ [0.2126, 0.7152, 0.0722]
    text = np.array([float(t.get_color() == "white") for t in display.text_[0]])
    low, high = np.minimum(luminance, text), np.maximum(luminance, text)
    assert ((high + 0.05) / (low + 0.05)).min() > 4.5  # the level AA of WCAG 2


def test_curve_of_a_linear_model_is_exact():
    eps = [0.3, 0, 0.1, 0.3]
    display = RobustnessCurveDisplay.from_estimator(linear(), X, Y, attack=FGSM(), eps=eps)
    # a sample is broken by eps beyond its distance to the border
    signed = np.where(Y == 1, 1, -1) * (X @ W.numpy()) / np.abs(W.numpy()).sum()
    np.testing.assert_array_equal(display.eps, [0, 0.1, 0.3])
    np.testing.assert_array_equal(display.accuracy, [[(signed > e).mean() for e in display.eps]])
    assert display.accuracy[0, 0] == 35 / 40
    assert display.names == ["Linear"]
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), 100 * display.accuracy[0])
    assert "infty" in display.ax_.get_xlabel()
    assert "units of X" in display.ax_.get_xlabel()


def to_the_other_side(module, x, y):
    """Reflect at the border of `linear`, however far that is."""
    return x - 2 * (x @ W)[:, None] * W / (W @ W)


def test_a_break_at_small_eps_stays_one():
    attacked = []

    def only_when_small(eps):
        """Breaks the nearest half at eps=1, and nothing at larger ones."""

        def function(module, x, y):
            attacked.append((eps, len(x)))
            near = (x @ W).abs() < (X @ W.numpy()).std() * 0.6
            return torch.where(near[:, None] & (eps < 2), to_the_other_side(module, x, y), x)

        return External(function=function, eps=100.0 + eps)

    display = RobustnessCurveDisplay.from_estimator(
        linear(), X, Y, attack=only_when_small, eps=[1, 2, 3]
    )
    first = display.accuracy[0, 0]
    assert 0 < first < 35 / 40
    np.testing.assert_array_equal(display.accuracy, [[first] * 3])
    # those that are broken are not attacked again
    left = round(40 * first)
    assert attacked == [(1, 35), (2, left), (3, left)]


def test_curves_of_several_with_attacks_that_have_no_eps():
    def worst(eps):
        return WorstCase([FGSM(eps=eps), UniformNoise(eps=eps)])

    models = {"a": linear(), "b": ensemble()}
    attack = FGSM(eps=0.77)
    display = RobustnessCurveDisplay.from_estimators(models, X, Y, attack=worst, eps=[0.1, 0.4])
    for row, model in zip(display.accuracy, models.values(), strict=True):
        masks = [robust_mask(model, X, Y, attack=worst(eps)) for eps in (0.1, 0.4)]
        np.testing.assert_array_equal(row, [masks[0].mean(), (masks[0] & masks[1]).mean()])
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["a", "b"]
    RobustnessCurveDisplay.from_estimators(models, X, Y, attack=attack, eps=[0.1])
    assert attack.eps == 0.77


def test_comparison_holds_scores_and_wilsons_intervals():
    models = {"a": linear(), "b": ensemble()}
    attacks = {"signs": FGSM(eps=0.3), "noise": "noise"}
    display = AttackComparisonDisplay.from_estimators(models, X, Y, attacks=attacks, eps=0.5)
    assert display.attacks == ["signs", "noise", "worst of these"]
    noise = UniformNoise(eps=0.5)
    for i, model in enumerate(models.values()):
        signs = robust_accuracy_score(model, X, Y, attack=attacks["signs"])
        drawn = robust_accuracy_score(model, X, Y, attack=noise)
        both = [robust_mask(model, X, Y, attack=attack) for attack in (attacks["signs"], noise)]
        np.testing.assert_array_equal(
            display.accuracy[i], [signs, drawn, (both[0] & both[1]).mean()]
        )
        assert display.clean_accuracy[i] == robust_accuracy_score(model, X, Y, attack=PGD(eps=0))
    z, n, p = 1.959963984540054, 40, display.accuracy
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = np.stack([centre - half, centre + half], axis=-1)
    np.testing.assert_allclose(display.intervals, expected, rtol=1e-12)
    assert display.n_samples == 40
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["no attack", "signs", "noise", "worst of these"]
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["a", "b"]
    assert "(%)" in display.ax_.get_ylabel()


def test_comparison_of_one_attack_needs_no_worst():
    display = AttackComparisonDisplay.from_estimator(linear(), X, Y, attacks=[FGSM(eps=0.3)])
    assert display.attacks == ["fgsm"]
    assert display.names == ["Linear"]
    assert display.accuracy.shape == (1, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_regions_of_a_linear_model(norm):
    attack = PGD(eps=2.5, norm=norm)
    show = DecisionRegionDisplay.from_estimator
    display = show(linear(), X, Y, attack=attack, sample=7, n_grid=21, extent=4.0)
    np.testing.assert_array_equal(display.coordinates, np.linspace(-4, 4, 21))
    order = {"linf": np.inf, "l2": 2}[norm]
    x_adv = attack(linear(), torch.tensor(X[[7]]), torch.tensor(Y[[7]])).numpy()[0]
    u = (x_adv - X[7]) / np.linalg.norm(x_adv - X[7], order)
    # w.(x + a u + b v) is linear in a and b, and v is orthogonal to u
    assert display.adversarial_distance == pytest.approx(np.linalg.norm(x_adv - X[7], order))
    centre = 10
    along = X[7] @ W.numpy() + display.coordinates * (u @ W.numpy())
    np.testing.assert_array_equal(display.decisions[centre], (along > 0).astype(int))
    np.testing.assert_allclose(display.distances[centre], np.abs(display.coordinates))
    np.testing.assert_allclose(display.distances[:, centre], np.abs(display.coordinates))
    if norm == "l2":
        a, b = np.meshgrid(display.coordinates, display.coordinates)
        np.testing.assert_allclose(display.distances, np.hypot(a, b))
    assert display.label == Y[7]
    assert display.adversarial_label == 1 - Y[7]
    again, other = (
        show(linear(), X, Y, attack=attack, sample=7, n_grid=21, extent=4.0, random_state=seed)
        for seed in (0, 3)
    )
    np.testing.assert_array_equal(display.decisions, again.decisions)
    assert (display.decisions != other.decisions).any()


def test_regions_have_the_estimators_labels(digit_rows, lettered):
    _, test, _, y_test = digit_rows
    letters, clf = np.array(list("abcdefghij")), lettered
    sample = np.flatnonzero(clf.predict(test) == letters[y_test])[0]
    display = DecisionRegionDisplay.from_estimator(
        clf, test, letters[y_test], attack=FGSM(eps=0.3), sample=sample, n_grid=5
    )
    assert display.label == letters[y_test][sample] == display.decisions[2, 2]
    assert set(display.decisions.ravel()) <= set(letters)
    (found,) = clf.predict(FGSM(eps=0.3).generate(clf, test[[sample]], letters[y_test][[sample]]))
    assert display.adversarial_label == found != display.label
    entries = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert entries[0] == f"class {display.label}"
    assert "adversarial example" in entries
    in_vain = DecisionRegionDisplay.from_estimator(
        clf, test, letters[y_test], attack=FGSM(eps=1e-6), sample=sample, n_grid=5
    )
    entries = [text.get_text() for text in in_vain.ax_.get_legend().get_texts()]
    assert "failed attack" in entries
    assert "adversarial example" not in entries


@pytest.mark.parametrize(("extent", "n_grid"), [(0.5, 5), (60.0, 4)])
def test_a_ball_that_no_point_of_the_grid_tells_is_not_drawn(extent, n_grid):
    display = regions(attack=FGSM(eps=1.0), extent=extent, n_grid=n_grid)
    entries = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert not any("ball" in entry for entry in entries)


def curve(**settings):
    return RobustnessCurveDisplay.from_estimators(
        **{"estimators": {"a": linear()}, "X": X, "y": Y, "attack": FGSM(), "eps": [0.1]} | settings
    )


def regions(**settings):
    return DecisionRegionDisplay.from_estimator(
        **{"estimator": linear(), "X": X, "y": Y, "attack": FGSM(eps=1.0), "sample": 7} | settings
    )


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "a row for each of 1 sources",
         lambda: TransferabilityDisplay([[1, 0]], sources=["a"], targets=["a"])),
        (ValueError, "measure must be one of",
         lambda: TransferabilityDisplay([[1]], sources=["a"], targets=["a"], measure="rate")),
        (ValueError, "a row for each of 2 names",
         lambda: RobustnessCurveDisplay([0, 1], [[1, 0]], names=["a", "b"])),
        (ValueError, r"\(1, 2\)",
         lambda: AttackComparisonDisplay([[1]], [1], n_samples=9, names="a", attacks="ab")),
        (ValueError, r"shape \(2, 2\)",
         lambda: DecisionRegionDisplay([0, 1], [[1]], [[1]], eps=1, norm="l2",
                                       adversarial_distance=1, label=0, adversarial_label=1)),
        (TypeError, "use from_estimator", lambda: curve(estimators=[linear()])),
        (ValueError, "estimators is empty", lambda: curve(estimators={})),
        (ValueError, "finite numbers >= 0", lambda: curve(eps=[-0.1, 0.1])),
        (ValueError, "finite numbers >= 0", lambda: curve(eps=[])),
        (ValueError, "finite numbers >= 0", lambda: curve(eps=[0.1, np.nan])),
        (TypeError, "no eps to vary", lambda: curve(attack=WorstCase([FGSM()]))),
        (TypeError, "lambda eps", lambda: curve(attack=lambda eps: eps)),
        (TypeError, "lambda eps", lambda: curve(attack="pgd")),
        (ValueError, "targeted", lambda: curve(attack=PGD(targeted=True))),
        (TypeError, "an eps and a norm", lambda: regions(attack=WorstCase([FGSM()]))),
        (ValueError, "targeted", lambda: regions(attack=PGD(targeted=True))),
        (ValueError, "no direction", lambda: regions(attack=FGSM(eps=0))),
        (ValueError, "leaves sample 7 where it is",
         lambda: regions(attack=External(function=lambda module, x, y: x, eps=1.0))),
        (ValueError, "extent must be positive", lambda: regions(extent=-1.0)),
        (ValueError, "n_grid", lambda: regions(n_grid=1)),
        (ValueError, "X has 40", lambda: regions(sample=40)),
        (ValueError, "misclassified", lambda: regions(sample=0)),
        (ValueError, "two features",
         lambda: regions(estimator=linear(W[:1]), X=X[:, :1])),
    ],
)  # fmt: skip
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()
