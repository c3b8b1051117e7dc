"""Twins of scikit-learn steps: equal to the steps, differentiable, and honest about gaps."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.fixes import parse_version
from torch import nn

from robust_ensembles.exceptions import NotDifferentiableError
from robust_ensembles.twins import as_torch, check_differentiable
from robust_ensembles.twins.steps import StandardTwin

N_FEATURES = 5


class FakeModule(nn.Module):
    """Linear members in float32; the logits are the members' mean."""

    clip_values = (0.0, 1.0)

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def member_logits(self, x):
        return torch.einsum("nf,mfc->mnc", x, self.weights)

    def forward(self, x):
        return self.member_logits(x).mean(dim=0)


class FakeClassifier(ClassifierMixin, BaseEstimator):
    def __init__(self, n_members=3):
        self.n_members = n_members

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        generator = torch.Generator().manual_seed(0)
        shape = (self.n_members, X.shape[1], len(self.classes_))
        self.module_ = FakeModule(torch.randn(shape, generator=generator))
        return self

    def predict_proba(self, X):
        x = torch.tensor(np.asarray(X), dtype=torch.float32)
        return self.module_(x).softmax(dim=1).detach().numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def as_module(self):
        return self.module_


class SingleModel(FakeClassifier):
    """Its module has no member_logits and no clip_values."""

    def fit(self, X, y):
        super().fit(X, y)
        torch.manual_seed(0)
        self.module_ = nn.Linear(X.shape[1], len(self.classes_))
        return self


@pytest.fixture(name="X")
def fitted_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(loc=[0, 3, -2, 50, 1], scale=[1, 5, 0.1, 10, 1], size=(40, N_FEATURES))
    X[:, 4] = 1.0  # a constant feature: scale_ is 1 there
    return X


@pytest.fixture(name="X_new")
def new_rows():
    """Rows outside the fitted range, so that clipping matters, and one row of zeros."""
    rng = np.random.default_rng(1)
    X = rng.normal(scale=[3, 15, 3, 60, 3], size=(20, N_FEATURES))
    X[0] = 0.0
    return X


@pytest.fixture
def y():
    return np.arange(40) % 3


def double(X, factor=2):
    return X * factor


def log1p(X):
    return torch.log1p(X) if isinstance(X, torch.Tensor) else np.log1p(X)


STEPS = {
    "standard": StandardScaler(),
    "standard-no-mean": StandardScaler(with_mean=False),
    "standard-no-std": StandardScaler(with_std=False),
    "standard-off": StandardScaler(with_mean=False, with_std=False),
    "minmax": MinMaxScaler(),
    "minmax-clip": MinMaxScaler(feature_range=(-1, 2), clip=True),
    "maxabs": MaxAbsScaler(),
    "robust": RobustScaler(),
    "robust-no-centering": RobustScaler(with_centering=False),
    "robust-no-scaling": RobustScaler(with_scaling=False, quantile_range=(10, 90)),
    "l1": Normalizer("l1"),
    "l2": Normalizer("l2"),
    "max": Normalizer("max"),
    "pca": PCA(3),
    "pca-whiten": PCA(3, whiten=True),
    "pca-whiten-rank-deficient": PCA(whiten=True, svd_solver="covariance_eigh"),
    "identity": FunctionTransformer(),
    "function": FunctionTransformer(double),
    "function-kw-args": FunctionTransformer(double, kw_args={"factor": -3}),
    "function-validate": FunctionTransformer(double, validate=True),
    "lambda": FunctionTransformer(lambda X: X**2),
    "pipeline": make_pipeline(StandardScaler(), "passthrough", make_pipeline(PCA(2), Normalizer())),
    "pipeline-of-identities": Pipeline([("a", "passthrough"), ("b", None)]),
}
if "clip" in MaxAbsScaler().get_params():
    STEPS["maxabs-clip"] = MaxAbsScaler(clip=True)


@pytest.mark.parametrize("name", STEPS)
class TestStepTwins:
    def test_float64(self, name, X, X_new):
        step = STEPS[name].fit(X)
        expected, twin = step.transform(X_new), as_torch(step)
        found = twin(torch.tensor(X_new))
        assert found.dtype == torch.float64
        # Whitening divides the constant feature's rounding noise by almost nothing.
        loose = "rank-deficient" in name
        scale = np.abs(expected).max() if loose else 1.0
        np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-10, atol=1e-10)
        for constant in ("mean_", "scale_", "center_", "min_", "components_"):
            if getattr(step, constant, None) is not None:
                getattr(step, constant)[...] = 7.0  # the twin has copies
        assert torch.equal(twin(torch.tensor(X_new)), found)

    @pytest.mark.parametrize("fit_dtype", [np.float32, np.float64])
    def test_float32(self, name, fit_dtype, X, X_new):
        if "rank-deficient" in name:
            pytest.skip("float32 has no digits left for it")
        step = STEPS[name].fit(X.astype(fit_dtype))
        rows = X_new.astype(np.float32)
        expected = step.transform(rows)
        found = as_torch(step)(torch.tensor(rows)).numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_gradient(self, name, X, X_new):
        if "rank-deficient" in name:
            pytest.skip("its derivatives are too large for finite differences")
        twin = as_torch(STEPS[name].fit(X))
        x = torch.tensor(X_new[1:6], requires_grad=True)  # away from the kink at zero
        assert torch.autograd.gradcheck(twin, (x,))


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="older scalers round float32 in another way; seen with 1.6",
)
def test_exact_scalers_in_float32(X, X_new):
    """Far from zero a float32 centre would cost digits: the twin rounds where sklearn does."""
    rows = (X_new + 1e6).astype(np.float32)
    for step in (StandardScaler(), RobustScaler(), MinMaxScaler()):
        step.fit(X + 1e6)
        found = as_torch(step)(torch.tensor(rows)).numpy()
        np.testing.assert_array_equal(found, step.transform(rows))


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_normalizer_keeps_zero_rows_and_finite_gradients(norm):
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    out = as_torch(Normalizer(norm))(x)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert torch.equal(out, torch.zeros_like(out))
    assert gradient.isfinite().all()


def test_rows_of_integers_and_images(X):
    scaler = StandardScaler().fit(X)
    rows = np.arange(10).reshape(2, 5)
    found = as_torch(scaler)(torch.tensor(rows))
    np.testing.assert_allclose(found, scaler.transform(rows), rtol=1e-12)
    with pytest.raises(ValueError, match=r"got shape \(2, 1, 5\)"):
        as_torch(scaler)(torch.zeros(2, 1, 5))


def test_constants_fall_back_to_float32_where_float64_is_refused(X):
    def to_mps(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    twin = as_torch(make_pipeline(StandardScaler(), PCA(2)).fit(X))._apply(to_mps)
    assert {buffer.dtype for buffer in twin.buffers()} == {torch.float32}
    assert twin(torch.zeros(3, 5)).dtype == torch.float32


def test_other_type_errors_while_moving_are_not_hidden():
    def fail(tensor):
        raise TypeError("other")

    with pytest.raises(TypeError, match="other"):
        StandardTwin(np.zeros(2), None)._apply(fail)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", STEPS)
def test_cuda(name, X, X_new):
    if "rank-deficient" in name:
        pytest.skip("amplifies rounding noise")
    step = STEPS[name].fit(X)
    found = as_torch(step).to("cuda")(torch.tensor(X_new, device="cuda"))
    np.testing.assert_allclose(found.cpu(), step.transform(X_new), rtol=1e-9, atol=1e-9)


class TestClassifierPipelines:
    def test_nested_pipeline(self, X, y):
        inner = make_pipeline(PCA(3), FakeClassifier())
        pipeline = make_pipeline(StandardScaler(), "passthrough", inner).fit(X, y)
        twin = as_torch(pipeline)
        check_differentiable(twin, pipeline, X)
        members = twin.member_logits(torch.tensor(X))
        assert members.shape == (3, 40, 3)
        torch.testing.assert_close(members.mean(dim=0), twin(torch.tensor(X)))
        expected = pipeline.predict_proba(X)
        found = twin(torch.tensor(X)).softmax(dim=1).detach()
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_gradient_of_raw_rows(self, X, y):
        twin = as_torch(make_pipeline(MinMaxScaler(), FakeClassifier()).fit(X, y)).double()
        x = torch.tensor(X[:3], requires_grad=True)
        assert torch.autograd.gradcheck(twin, (x,))
        assert torch.autograd.gradcheck(twin.member_logits, (x,))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_raw_dtype(self, dtype, X, y):
        rows = X.astype(dtype)
        pipeline = make_pipeline(StandardScaler(), FakeClassifier()).fit(rows, y)
        check_differentiable(as_torch(pipeline), pipeline, rows)

    def test_member_logits_only_where_the_module_has_them(self, X, y):
        single = as_torch(make_pipeline(StandardScaler(), SingleModel()).fit(X, y))
        ensemble = as_torch(make_pipeline(StandardScaler(), FakeClassifier()).fit(X, y))
        assert not hasattr(single, "member_logits")
        assert hasattr(ensemble, "member_logits")

    def test_clip_values_are_kept_behind_identities_only(self, X, y):
        behind = Pipeline(
            [("a", "passthrough"), ("b", FunctionTransformer()), ("c", FakeClassifier())]
        )
        scaled = make_pipeline(StandardScaler(), FakeClassifier())
        assert as_torch(behind.fit(X, y)).clip_values == (0.0, 1.0)
        assert as_torch(scaled.fit(X, y)).clip_values is None

    def test_searches(self, X, y):
        pipeline = Pipeline([("scale", StandardScaler()), ("clf", FakeClassifier())])
        grid = {"clf__n_members": [2], "scale": [RobustScaler(), "passthrough"]}
        search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
        twin = as_torch(search)
        check_differentiable(twin, search, X)
        assert twin.member_logits(torch.tensor(X, dtype=torch.float32)).shape == (2, 40, 3)
        inner = GridSearchCV(FakeClassifier(), {"n_members": [2]}, cv=2)
        pipeline = make_pipeline(StandardScaler(), inner).fit(X, y)
        check_differentiable(as_torch(pipeline), pipeline, X)
        with pytest.raises(NotFittedError, match="refit=True"):
            as_torch(clone(inner).set_params(refit=False).fit(X, y))

    def test_data_frame(self, X, y):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(X, columns=list("abcde"))
        scaler = StandardScaler().set_output(transform="pandas")
        pipeline = make_pipeline(scaler, FakeClassifier()).fit(frame, y)
        check_differentiable(as_torch(pipeline), pipeline, frame)


class TestDispatch:
    def test_as_module_and_modules(self, X, y):
        classifier = FakeClassifier().fit(X, y)
        assert as_torch(classifier) is classifier.module_
        assert as_torch(classifier.module_) is classifier.module_

    def test_strings(self):
        assert isinstance(as_torch(None), nn.Identity)
        assert isinstance(as_torch("passthrough"), nn.Identity)
        with pytest.raises(NotDifferentiableError, match="'drop'"):
            as_torch("drop")

    @pytest.mark.parametrize(
        "step", [StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler(), PCA()]
    )
    def test_not_fitted(self, step):
        with pytest.raises(NotFittedError):
            as_torch(step)

    def test_register(self, X, y):
        class Halve(TransformerMixin, BaseEstimator):
            def fit(self, X, y=None):
                self.divisor_ = 2.0
                return self

            def transform(self, X):
                return X / self.divisor_

        pipeline = make_pipeline(Halve(), FakeClassifier()).fit(X, y)
        with pytest.raises(NotDifferentiableError, match="Pipeline step 'halve': Halve has no"):
            as_torch(pipeline)

        @as_torch.register(Halve)
        def _(step):
            return StandardTwin(None, np.full(N_FEATURES, step.divisor_))

        check_differentiable(as_torch(pipeline), pipeline, X)

    @pytest.mark.parametrize(
        "step",
        [
            ColumnTransformer([("all", StandardScaler(), slice(None))]),
            FeatureUnion([("pca", PCA(2))]),
            KBinsDiscretizer(strategy="uniform"),
        ],
        ids=lambda step: type(step).__name__,
    )
    def test_no_twin(self, step):
        pipeline = Pipeline([("outer", Pipeline([("bad", step)])), ("clf", FakeClassifier())])
        with pytest.raises(NotDifferentiableError) as caught:
            as_torch(pipeline)
        message = str(caught.value)
        expected = ["'outer'", "'bad'", type(step).__name__, "as_torch.register", "Square"]
        assert all(part in message for part in [*expected, "Transfer", "into the module"])
        assert isinstance(caught.value, TypeError)


class Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


class TestCheckDifferentiable:
    @pytest.mark.parametrize("func", [double, log1p, lambda X: X**2])
    def test_functions_for_arrays_and_tensors(self, func, X, y):
        X = np.abs(X)
        pipeline = make_pipeline(FunctionTransformer(func), FakeClassifier()).fit(X, y)
        check_differentiable(as_torch(pipeline), pipeline, X)

    @pytest.mark.parametrize(
        ("func", "message"),
        [
            (np.log1p, "failed on a torch tensor"),
            (lambda X: np.asarray(X.tolist()), "gave ndarray"),
            (lambda X: X.astype(float), "failed on a torch tensor"),
            (lambda X: X.detach() if isinstance(X, torch.Tensor) else X, "passes no gradient"),
        ],
    )
    def test_functions_without_gradient(self, func, message, X, y):
        X = np.abs(X)
        pipeline = Pipeline([("log", FunctionTransformer(func)), ("clf", FakeClassifier())])
        pipeline.fit(X, y)
        with pytest.raises(NotDifferentiableError, match=message) as caught:
            check_differentiable(as_torch(pipeline), pipeline, X)
        assert "'log'" in str(caught.value)
        assert "torch.log1p" in str(caught.value)

    @pytest.mark.parametrize(
        "cut", [lambda x, f: f(x.detach()), lambda x, f: torch.zeros(len(x), 3)]
    )
    def test_outputs_without_a_graph(self, cut, X, y):
        classifier = SingleModel().fit(X, y)
        twin = Wrapped(lambda x: cut(x, classifier.module_))
        with pytest.raises(NotDifferentiableError, match="not connected to X"):
            check_differentiable(twin, classifier, X.astype(np.float32))

    def test_infinite_gradient(self, y):
        X = np.zeros((40, 2))
        pipeline = make_pipeline(FunctionTransformer(lambda X: X**0.5), FakeClassifier())
        with pytest.raises(NotDifferentiableError, match="not finite"):
            check_differentiable(as_torch(pipeline.fit(X, y)), pipeline, X)

    def test_zero_gradient_passes(self, X, y):
        classifier = FakeClassifier().fit(X, y)
        with torch.no_grad():
            classifier.module_.weights.zero_()
            check_differentiable(as_torch(classifier), classifier, X)
        assert classifier.module_.weights.grad is None

    def test_disagreement_names_the_difference(self, X, y):
        pipeline = make_pipeline(StandardScaler(), FakeClassifier()).fit(X, y)
        with pytest.raises(ValueError, match=r"differ by up to 0\.\d+") as caught:
            check_differentiable(pipeline[-1].module_, pipeline, X)
        assert not isinstance(caught.value, TypeError)

    def test_other_disagreements(self, X, y):
        classifier = FakeClassifier().fit(X, y)
        nan = Wrapped(lambda x: classifier.module_(x) + float("nan"))
        for twin, message in ((nan, "differ by up to nan"), (nn.Linear(N_FEATURES, 2), "shape")):
            with pytest.raises(ValueError, match=message):
                check_differentiable(twin, classifier, X.astype(np.float32))

    def test_other_containers(self, X, y):
        classifier = FakeClassifier().fit(X, y)
        check_differentiable(as_torch(classifier), classifier, torch.tensor(X))
        check_differentiable(as_torch(classifier), classifier, X.round().astype(int).tolist())

    def test_estimator_without_probabilities(self, X):
        module = nn.Linear(N_FEATURES, 2)
        check_differentiable(module, module, X)
