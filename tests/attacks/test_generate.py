"""`generate`: raw X and labels of anything fitted."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from robust_ensembles.attacks import BIM, FGSM, PGD, UniformNoise, WorstCase, resolve_target
from robust_ensembles.exceptions import NotDifferentiableError
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.modules import Ensemble, RawInput


class Nearest(ClassifierMixin, BaseEstimator):
    """Three linear members that look for the nearest class mean, and what `as_module` needs."""

    def __init__(self, clip_values=(0.0, 1.0)):
        self.clip_values = clip_values

    def fit(self, X, y):
        x = self._scale(X)
        self.classes_ = np.unique(y)
        means = np.stack([x[y == label].mean(axis=0) for label in self.classes_])
        self.input_shape_ = x.shape[1:]
        members = [self._member(means * factor) for factor in (0.9, 1.0, 1.1)]
        box = self.clip_values
        self.module_ = RawInput(Ensemble(members), self.input_shape_, box).eval()
        return self

    def _member(self, means):
        flat = torch.tensor(means.reshape(len(means), -1), dtype=torch.float32)
        layer = torch.nn.Linear(flat.shape[1], len(flat))
        with torch.no_grad():
            layer.weight.copy_(4 * flat)
            layer.bias.copy_(-2 * flat.square().sum(dim=1))
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    @staticmethod
    def _scale(X):
        X = np.asarray(X)
        return X.astype(np.float32) / 255 if X.dtype == np.uint8 else X.astype(np.float32)

    def as_module(self):
        return self.module_

    def predict_proba(self, X):
        with torch.no_grad():
            return self.module_(torch.tensor(self._scale(X))).exp().numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


@pytest.fixture(name="data")
def blobs():
    rng = np.random.default_rng(0)
    y = np.array(["cat", "dog", "fox"])[np.arange(60) % 3]
    centres = np.array([[0.2, 0.3, 0.5, 0.4], [0.7, 0.2, 0.5, 0.6], [0.4, 0.8, 0.3, 0.5]])
    X = np.clip(centres[np.arange(60) % 3] + 0.08 * rng.normal(size=(60, 4)), 0, 1)
    return X.astype(np.float32), y


def test_string_labels(data):
    X, y = data
    estimator = Nearest().fit(X, y)
    found = PGD(eps=0.25).generate(estimator, X, y)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    assert found.shape == X.shape
    assert estimator.score(X, y) > 0.9
    assert estimator.score(found, y) < 0.3
    assert np.abs(found.astype(float) - X).max() <= 0.25
    assert found.min() >= 0
    assert found.max() <= 1


def test_equals_the_call_on_tensors(data):
    X, y = data
    estimator = Nearest().fit(X, y)
    codes = torch.tensor(np.searchsorted(estimator.classes_, y))
    expected = PGD(eps=0.1)(estimator.as_module(), torch.tensor(X), codes)
    np.testing.assert_array_equal(PGD(eps=0.1).generate(estimator, X, y), expected.numpy())


def test_targets_are_labels(data):
    X, _ = data
    estimator = Nearest().fit(*data)
    found = PGD(eps=0.9, targeted=True).generate(estimator, X, np.full(60, "fox"))
    assert (estimator.predict(found) == "fox").mean() > 0.9


def test_uint8_images_are_attacked_in_the_unit_box(data):
    X, y = data
    images = (255 * X).round().astype(np.uint8).reshape(60, 1, 2, 2)
    estimator = Nearest().fit(images, y)
    found = FGSM(eps=8 / 255).generate(estimator, images, y)
    assert found.dtype == np.float32
    assert found.shape == images.shape
    distance = np.abs(found.astype(float) - images.astype(np.float32) / np.float32(255)).max()
    assert 0.9 * 8 / 255 < distance <= 8 / 255
    assert found.max() <= 1
    assert estimator.score(found, y) <= estimator.score(images, y)


def test_read_only_and_other_containers(data):
    X, y = data
    estimator = Nearest().fit(X, y)
    expected = BIM(eps=0.1).generate(estimator, X, y)
    frozen = X.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(BIM(eps=0.1).generate(estimator, frozen, y), expected)
    np.testing.assert_array_equal(frozen, X)
    of_lists = BIM(eps=0.1).generate(estimator, X.tolist(), y.tolist())
    np.testing.assert_allclose(of_lists, expected, atol=1e-6)
    assert of_lists.dtype == np.float64


def test_pipeline_in_raw_units(data):
    """eps is measured on what the user hands in, not behind the scaler."""
    X, y = data
    raw = 100 * X - 30
    pipeline = make_pipeline(StandardScaler(), Nearest(clip_values=None)).fit(raw, y)
    found = PGD(eps=25.0).generate(pipeline, raw, y)
    moved = np.abs(found.astype(float) - raw)
    assert 20 < moved.max() <= 25
    assert pipeline.score(raw, y) > 0.9
    assert pipeline.score(found, y) < 0.3
    # a unit of one feature is another fraction of its spread: L-inf in raw units, not in scaled
    assert np.abs(FGSM(eps=1.0).generate(pipeline, raw, y) - raw).max() <= 1


def test_a_box_behind_a_scaler_is_not_applied_in_front_of_it(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), Nearest(clip_values=(0.0, 1.0))).fit(100 * X, y)
    found = PGD(eps=5.0).generate(pipeline, 100 * X, y)
    assert found.max() > 50
    boxed = PGD(eps=5.0, clip_values=(0, 100)).generate(pipeline, 100 * X, y)
    assert boxed.min() >= 0


def test_uint8_through_a_pipeline_is_plain_numbers(data):
    X, y = data
    numbers = (255 * X).round().astype(np.uint8)
    pipeline = make_pipeline(StandardScaler(), Nearest(clip_values=None)).fit(numbers, y)
    found = FGSM(eps=8.0).generate(pipeline, numbers, y)
    assert 7.9 < np.abs(found - numbers.astype(float)).max() <= 8
    assert not resolve_target(pipeline, numbers).scales_uint8


def test_bytes_through_a_search(data):
    X, y = data
    search = GridSearchCV(Nearest(), {"clip_values": [(0.0, 1.0)]}, cv=2).fit(X, y)
    images = (255 * X).round().astype(np.uint8)
    found = PGD(eps=0.1).generate(search, images, y)
    assert found.max() <= 1
    expected = PGD(eps=0.1).generate(search.best_estimator_, images, y)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("attack", [PGD(eps=0.1), WorstCase([FGSM(eps=0.1), PGD(eps=0.1)])])
def test_unknown_labels(attack, data):
    X, y = data
    estimator = Nearest().fit(X, y)
    y = y.copy()
    y[3] = "cow"
    with pytest.raises(ValueError, match=r"not trained on: \['cow'\].*'cat', 'dog', 'fox'"):
        attack.generate(estimator, X, y)


def test_other_errors(data):
    X, y = data
    estimator = Nearest().fit(X, y)
    with pytest.raises(ValueError, match="eps"):
        PGD(eps=-1).generate(estimator, X, y)
    with pytest.raises(ValueError, match="X has 60 samples but y has 59"):
        PGD().generate(estimator, X, y[:-1])
    with pytest.raises(ValueError, match=r"outside clip_values=\(0\.0, 1\.0\)"):
        PGD().generate(estimator, 255 * X, y)


def test_gradient_free_attacks_need_no_gradient(data):
    """A step whose function runs on tensors but cuts the graph."""
    X, y = data

    def rounded(x):
        return x.round(decimals=1).detach() if isinstance(x, torch.Tensor) else x.round(1)

    pipeline = make_pipeline(FunctionTransformer(rounded), Nearest(clip_values=None)).fit(X, y)
    with pytest.raises(NotDifferentiableError):
        PGD(eps=0.3).generate(pipeline, X, y)
    found = UniformNoise(eps=0.3).generate(pipeline, X, y)
    assert pipeline.score(found, y) < pipeline.score(X, y)


class TestBareModules:
    """A module without an estimator: classes are 0, 1, ..."""

    @pytest.fixture
    def module(self):
        generator = torch.Generator().manual_seed(0)
        layer = torch.nn.Linear(6, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, 6, generator=generator))
            layer.bias.zero_()
        return torch.nn.Sequential(layer, torch.nn.Dropout(0.5)).train()

    def test_attack_and_score(self, module):
        X = np.random.default_rng(0).random((30, 6))  # float64 for a float32 module
        x = torch.tensor(X).float()
        y = module.eval()(x).argmax(dim=1)
        module.train()
        found = FGSM(eps=0.2).generate(module, X, y.numpy())
        torch.testing.assert_close(torch.tensor(found), FGSM(eps=0.2)(module, x, y))
        score = robust_accuracy_score(module, X, y.numpy(), attack=FGSM(eps=0.2))
        expected = (module.eval()(torch.tensor(found)).argmax(dim=1) == y).float().mean()
        assert 0 < score < 1
        assert score == pytest.approx(float(expected))

    def test_left_alone(self, module):
        resolve_target(module, np.zeros((2, 6), dtype=np.float32))
        assert all(m.training for m in module.modules())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())

    def test_images_of_bytes(self):
        flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        X = np.full((3, 1, 2, 2), 255, dtype=np.uint8)
        target = resolve_target(flat, X)
        assert float(target.tensor(X).max()) == 1.0
        assert target.classes.tolist() == [0, 1]

    def test_cut_gradient(self, module):
        class Cut(torch.nn.Module):
            def forward(self, x):
                return module(x.detach())

        with pytest.raises(NotDifferentiableError, match="not connected to X"):
            PGD().generate(Cut(), np.zeros((2, 6), dtype=np.float32), [0, 1])
