"""The deployed rule for serving: torch.export anywhere, ONNX with the extra `onnx`."""

import json
import sys

import numpy as np
import pytest
import torch
from file_parts import small
from packaging.version import Version
from sklearn.exceptions import NotFittedError

from robust_ensembles.modules import CifarResNet
from robust_ensembles.persistence import export_onnx


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture
def runtime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


def log_proba(runtime, path, X):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(["log_proba"], {"X": X})
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_torch_export_takes_any_number_of_samples(dtype, digit_images):
    X, X_test, y, _ = digit_images
    module = small(module="lenet5", module_params=None).fit(X[:64], y[:64]).as_module()
    x = torch.from_numpy((255 * X_test).astype(dtype))
    shapes = ({0: torch.export.Dim("n_samples")},)
    program = torch.export.export(module, (x[:3],), dynamic_shapes=shapes)
    for n in (1, 7):
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x[:n]), module(x[:n]))


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="torch 2.6 cannot write ResNets as ONNX"
)
def test_onnx_computes_what_the_estimator_does(digit_images, runtime, path):
    X, X_test, y, _ = digit_images
    params = {"depth": 8, "normalize": (0.5, 0.2)}
    estimator = small(module=CifarResNet, n_estimators=2, module_params=params)
    estimator.fit(X[:64], np.array(list("abcdefghij"))[y[:64]]).export_onnx(path)
    expected = estimator.predict_log_proba(X_test)
    for n in (1, 5, 100):
        served = log_proba(runtime, path, X_test[:n].astype(np.float32))
        np.testing.assert_allclose(served, expected[:n], rtol=1e-5, atol=1e-5)
    import onnx

    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(properties["classes"]) == list("abcdefghij")


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_onnx_takes_flat_rows_of_other_types(dtype, digit_rows, runtime, path):
    X, X_test, y, _ = digit_rows
    estimator = small(module="lenet5", input_shape=(1, 8, 8)).fit(X[:64], y[:64])
    estimator.export_onnx(path, input_dtype=dtype)
    rows = (255 * X_test).astype(dtype) if dtype == "uint8" else X_test.astype(dtype)
    np.testing.assert_allclose(
        log_proba(runtime, path, rows), estimator.predict_log_proba(rows), rtol=1e-5, atol=1e-5
    )


def test_onnx_leaves_the_estimator_and_an_older_file_alone(digit_rows, runtime, path):
    X, _, y, _ = digit_rows
    estimator = small().fit(X, y)
    before = estimator.predict_log_proba(X)
    path.write_text("older")
    with pytest.raises(RuntimeError, match="differs from the estimator"):
        estimator.export_onnx(path, tolerance=-1.0)
    assert path.read_text() == "older"
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(estimator.predict_log_proba(X), before)


def test_networks_that_torch_cannot_write(digit_rows, runtime, path, monkeypatch):
    X, _, y, _ = digit_rows

    def export(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("no decomposition of such an operator")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(RuntimeError, match=r"torch \S+ could not write these networks as ONNX"):
        small().fit(X, y).export_onnx(path)
    assert not path.exists()


def test_what_cannot_be_exported(digit_rows, path, monkeypatch):
    X, _, y, _ = digit_rows
    with pytest.raises(NotFittedError):
        export_onnx(small(), path)
    estimator = small().fit(X, y)
    with pytest.raises(ValueError, match="input_dtype must be one of"):
        estimator.export_onnx(path, input_dtype="int8")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install onnx onnxscript onnxruntime"):
        estimator.export_onnx(path)
