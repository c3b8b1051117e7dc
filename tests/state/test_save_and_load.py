"""What was saved is what is loaded: predictions to the bit, parameters, classes, history."""

import json
import pickle
import warnings
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from file_parts import put_together, small, take_apart
from fresh_process import run_python
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring
from small_estimators import CLASSES
from torch import nn

import robust_ensembles
from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CLDLEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    GALEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD, External
from robust_ensembles.modules import MODULES
from robust_ensembles.persistence import load, save
from robust_ensembles.training import GaussianNoise, NoisyCopies, RandomCrop


class Linear(nn.Module):
    """A user's network."""

    def __init__(self, input_shape, n_classes, dtype=torch.float32, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(int(np.prod(input_shape)), n_classes, dtype=dtype)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.layer(x.flatten(1))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.first = nn.Linear(input_shape[0], input_shape[0], bias=False)
        self.second = nn.Linear(input_shape[0], input_shape[0], bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(input_shape[0], n_classes)

    def forward(self, x):
        return self.last(self.second(self.first(x)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def round_trip(estimator, path, *, optimizer_state=False, **params):
    estimator.save(path, optimizer_state=optimizer_state)
    return load(path, **params)


def assert_same(again, estimator, X):
    np.testing.assert_array_equal(again.predict_log_proba(X), estimator.predict_log_proba(X))
    np.testing.assert_array_equal(again.predict(X), estimator.predict(X))
    assert again.predict(X).dtype == estimator.predict(X).dtype
    assert again.classes_.dtype == estimator.classes_.dtype
    assert again.input_shape_ == estimator.input_shape_
    assert again.n_features_in_ == estimator.n_features_in_
    assert again.clip_values_ == estimator.clip_values_


def fitted(digit_rows, cls=VanillaEnsembleClassifier, n=64, **params):
    X, _, y, _ = digit_rows
    return small(cls, **params).fit(X[:n], y[:n])


@pytest.mark.parametrize("cls", CLASSES)
def test_every_estimator_comes_back_and_training_goes_on(cls, digit_rows, path):
    X, X_test, y, y_test = digit_rows
    estimator = fitted(digit_rows, cls)
    again = round_trip(estimator, path, optimizer_state=True)
    assert type(again) is cls
    assert_same(again, estimator, X_test)
    assert repr(again) == repr(estimator)
    assert again.history_.to_list() == [{**row, "batches": []} for row in estimator.history_]
    assert again.n_iter_ == 1
    assert again.score(X_test, y_test) == estimator.score(X_test, y_test)
    assert not again.module_.training
    assert [p.requires_grad for p in again.module_.parameters()] == [
        p.requires_grad for p in estimator.module_.parameters()
    ]
    first, second = (
        FGSM(eps=0.1).generate(one, X_test[:20], y_test[:20]) for one in (again, estimator)
    )
    np.testing.assert_array_equal(first, second)
    assert not hasattr(clone(again), "net_")
    for one in (estimator, again):
        one.partial_fit(X[:64], y[:64])
    assert_same(again, estimator, X)
    assert again.n_iter_ == 2


def test_without_its_memory_the_optimizer_starts_afresh(digit_rows, path):
    X, _, y, _ = digit_rows
    estimator = fitted(digit_rows)
    again = round_trip(estimator, path)
    assert not again.net_.optimizer_.state
    trimmed = path.stat().st_size
    estimator.save(path, optimizer_state=True)
    assert path.stat().st_size > 2 * trimmed
    before = again.predict_proba(X)
    for one in (estimator, again):
        one.partial_fit(X[:64], y[:64])
    assert not np.array_equal(again.predict_proba(X), before)
    assert not np.array_equal(again.predict_proba(X), estimator.predict_proba(X))


@pytest.mark.parametrize("memory", [True, False])
def test_the_learning_rate_that_was_reached_is_kept(memory, digit_rows, path):
    estimator = fitted(
        digit_rows,
        optimizer="sgd",
        optimizer_params={"momentum": 0.9},
        lr_milestones=[1],
        max_epochs=2,
    )
    again = round_trip(estimator, path, optimizer_state=memory)
    groups = again.net_.optimizer_.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.001] * 3)
    assert [group["momentum"] for group in groups] == [0.9] * 3
    lowered = load(path, lr=0.5).net_.optimizer_.param_groups
    assert [group["lr"] for group in lowered] == [0.5] * 3


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["zero", "one", "two"]),
        np.array(["zero", "one", "two"], dtype=object),
        np.array([False, True, True]),
        np.array([-3, 7, 2**40]),
        np.array([1, 2, 3], dtype=np.uint8),
        np.array([1.0, 2.0, 3.0]),
    ],
    ids=["str", "object", "bool", "int64", "uint8", "float"],
)
def test_classes_keep_their_type(labels, digit_rows, path):
    X, X_test, y, _ = digit_rows
    estimator = small().fit(X, labels[y % 3])
    assert_same(round_trip(estimator, path), estimator, X_test)


def test_images_of_bytes(digit_images, path):
    X, X_test, y, _ = digit_images
    X, X_test = (np.round(255 * part).astype(np.uint8) for part in (X, X_test))
    estimator = small(module="lenet5", module_params={"embedding_size": 8, "normalize": (0.5, 0.2)})
    estimator.fit(X[:64], y[:64])
    assert_same(round_trip(estimator, path), estimator, X_test)


def test_flat_rows_that_are_images(digit_rows, path):
    estimator = fitted(digit_rows, module="lenet5", input_shape=(1, 8, 8))
    again = round_trip(estimator, path)
    assert_same(again, estimator, digit_rows[1])
    assert again.input_shape == (1, 8, 8)


def test_mixed_ensembles(digit_rows, path):
    networks = (None, "mlp", MODULES["mlp"])
    estimator = fitted(
        digit_rows,
        module=networks,
        module_params=[None, {"hidden_sizes": (4,)}, {"hidden_sizes": [6, 5]}],
    )
    again = round_trip(estimator, path)
    assert_same(again, estimator, digit_rows[1])
    assert again.module == networks
    assert again.module_params == estimator.module_params


@pytest.mark.parametrize("name", MODULES)
def test_every_network_of_the_package(name, path):
    rng = np.random.default_rng(0)
    X = rng.random((12, 3, 8, 8), dtype=np.float32)
    estimator = small(module=name, n_estimators=2).fit(X, np.arange(12) % 2)
    assert_same(round_trip(estimator, path), estimator, X)


def test_networks_in_double_precision(digit_rows, path):
    torch.set_default_dtype(torch.float64)
    try:
        estimator = fitted(digit_rows)
    finally:
        torch.set_default_dtype(torch.float32)
    again = round_trip(estimator, path)
    assert next(again.module_.parameters()).dtype == torch.float64
    assert_same(again, estimator, digit_rows[1])


def test_own_networks_in_double_precision(digit_rows, path):
    double = partial(Linear, dtype=torch.float64)
    estimator = fitted(digit_rows, module=double)
    assert_same(round_trip(estimator, path, module=double), estimator, digit_rows[1])
    # a network in single precision would round the weights
    assert_same(load(path, module=Linear), estimator, digit_rows[1])


def test_own_networks_are_given_again(digit_rows, path):
    estimator = fitted(digit_rows, module=Linear, module_params={"scale": 2.0})
    estimator.save(path)
    with pytest.raises(ValueError, match=r"module=.*Linear.*load\(path, module=\.\.\.\)"):
        load(path)
    assert_same(load(path, module=Linear), estimator, digit_rows[1])
    with pytest.raises(robust_ensembles.exceptions.ModelFileError, match="not those of its"):
        load(path, module="mlp", module_params=None)


def test_parameters_of_networks_that_json_does_not_know(digit_rows, path):
    estimator = fitted(digit_rows, module=Linear, module_params={"dtype": torch.float64})
    estimator.save(path)
    with pytest.raises(ValueError, match=r"module=\.\.\., module_params=\.\.\."):
        load(path, module_params={})
    again = load(path, module=Linear, module_params={"dtype": torch.float64})
    assert_same(again, estimator, digit_rows[1])


def test_instances_as_networks(digit_rows, path):
    members = [Linear((64,), 10) for _ in range(3)]
    estimator = fitted(digit_rows, module=members)
    others = [Linear((64,), 10) for _ in range(3)]
    assert_same(round_trip(estimator, path, module=others), estimator, digit_rows[1])


def test_tied_weights_stay_tied(digit_rows, path):
    estimator = fitted(digit_rows, module=Tied)
    again = round_trip(estimator, path, module=Tied)
    assert_same(again, estimator, digit_rows[1])
    assert all(m.first.weight is m.second.weight for m in again.estimators_)


def test_names_of_features(digit_rows, path):
    X, X_test, y, _ = digit_rows
    names = [f"pixel {i}" for i in range(64)]
    estimator = small().fit(pd.DataFrame(X, columns=names), y)
    again = round_trip(estimator, path)
    assert again.feature_names_in_.tolist() == names
    assert_same(again, estimator, pd.DataFrame(X_test, columns=names))


def test_objects_among_the_parameters(digit_images, path):
    X, X_test, y, _ = digit_images
    estimator = small(
        GALEnsembleClassifier,
        module="lenet5",
        attack=PGD(eps=0.1, n_steps=1, clip_values=(0, 1), random_state=3),
        calibration=CollaborativeCalibration(lam=0.5, mu_exp=2.0),
        augmentation=[RandomCrop(1), GaussianNoise(), NoisyCopies(sigma=0.1)],
        optimizer=torch.optim.AdamW,
        optimizer_params={"betas": (0.8, 0.9)},
        class_weight={0: 2.0},
        accelerate={"double_backward"},
        device=torch.device("cpu"),
        train_split=0.2,
        clip_values=(0, 1),
    ).fit(X, y)
    again = round_trip(estimator, path)
    assert_same(again, estimator, X_test)
    assert repr(again) == repr(estimator)
    assert again.attack.get_params() == estimator.attack.get_params()
    assert again.class_weight == {0: 2.0}
    assert again.net_.train_split.split.random_state == estimator.net_.seed


def test_pretrained_comes_back_unfitted(digit_rows, path):
    start = fitted(digit_rows)
    estimator = fitted(digit_rows, DVERGEEnsembleClassifier, pretrained=start)
    again = round_trip(estimator, path)
    assert_same(again, estimator, digit_rows[1])
    assert repr(again.pretrained) == repr(start)
    assert not hasattr(again.pretrained, "net_")
    assert again.layers_ == estimator.layers_


def test_what_only_code_can_make_is_told(digit_rows, path):
    X, _, y, _ = digit_rows
    callbacks = [EpochScoring("accuracy", use_caching=False, name="acc", on_train=True)]
    estimator = fitted(
        digit_rows,
        AdversarialEnsembleClassifier,
        attack=External(function=lambda module, x, y: x, eps=0.1),
        callbacks=callbacks,
        random_state=np.random.RandomState(0),
    )
    estimator.save(path)
    with pytest.warns(UserWarning, match=r"attack.*callbacks.*random_state.*defaults") as caught:
        again = load(path)
    assert [w.filename for w in caught] == [__file__]
    assert again.callbacks is None
    assert again.attack is None
    assert_same(again, estimator, X)
    assert again.history_[:, "acc"] == estimator.history_[:, "acc"]
    load(path, callbacks=None, attack=FGSM(), random_state=0).partial_fit(X, y)


def test_the_folder_of_checkpoints_is_not_stored(digit_rows, path, tmp_path):
    """Whoever sends a file must not choose where fits write."""
    estimator = fitted(digit_rows, checkpoint_dir=tmp_path / "runs")
    again = round_trip(estimator, path)
    assert again.checkpoint_dir is None
    assert b"runs" not in path.read_bytes()


def test_users_classes_are_not_taken_for_those_of_their_names(digit_rows, path):
    own = {kind.__name__: type(kind.__name__, (kind,), {}) for kind in (MODULES["mlp"], PGD)}
    estimator = fitted(digit_rows, AdversarialEnsembleClassifier, module=own["MLP"])
    estimator.attack = own["PGD"](eps=0.1)
    estimator.save(path)
    with pytest.raises(ValueError, match=r"load\(path, module=\.\.\.\)"):
        load(path)
    with pytest.warns(UserWarning, match=r"attack \(.*PGD\)"):
        assert_same(load(path, module=own["MLP"]), estimator, digit_rows[1])


def test_users_optimizers_and_their_memory(digit_rows, path):
    X, _, y, _ = digit_rows

    class Own(torch.optim.SGD):
        pass

    estimator = fitted(digit_rows, optimizer=Own, optimizer_params={"momentum": 0.9})
    estimator.save(path, optimizer_state=True)
    with pytest.warns(UserWarning, match="optimizer"):
        fresh = load(path, optimizer_params=None)
    assert type(fresh.net_.optimizer_) is torch.optim.Adam
    assert not fresh.net_.optimizer_.state
    again = load(path, optimizer=Own)
    for one in (estimator, again):
        one.partial_fit(X[:64], y[:64])
    assert_same(again, estimator, X)


def test_a_frozen_start_is_told(digit_rows, path):
    frozen = FrozenEstimator(fitted(digit_rows))
    fitted(digit_rows, DVERGEEnsembleClassifier, pretrained=frozen).save(path)
    with pytest.warns(UserWarning, match="pretrained"):
        assert load(path).pretrained is None


def test_unknown_parameters_are_refused(digit_rows, path):
    fitted(digit_rows).save(path)
    with pytest.raises(ValueError, match="Invalid parameter 'modul'"):
        load(path, modul=Linear)


def test_a_device_that_is_not_here(digit_rows, path):
    estimator = fitted(digit_rows)
    estimator.save(path)
    table, header, data = take_apart(path)
    header["estimator"]["params"].update(device="cuda:7", accelerate=["cuda_graph"])
    put_together(path, table, header, data)
    again = load(path)
    assert (again.device, again.accelerate) == ("auto", "auto")
    assert load(path, device="cpu").device == "cpu"
    if not torch.cuda.is_available():
        assert_same(again, estimator, digit_rows[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_from_cuda_to_the_cpu(digit_rows, path):
    estimator = fitted(digit_rows, CLDLEnsembleClassifier, device="cuda")
    again = round_trip(estimator, path, device="cpu", optimizer_state=True)
    assert again.device_.type == "cpu"
    X = digit_rows[1]
    np.testing.assert_allclose(
        again.predict_proba(X), estimator.predict_proba(X), rtol=1e-4, atol=1e-6
    )
    assert load(path).device_.type == "cuda"
    assert again.partial_fit(X, digit_rows[3]).n_iter_ == 2


FRESH = """
import sys
import numpy as np
import robust_ensembles.persistence as persistence

def watch(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect"):
        raise RuntimeError(event)

sys.addaudithook(watch)
clf = persistence.load(sys.argv[1])
np.save(sys.argv[2], clf.predict_log_proba(np.load(sys.argv[3])))
"""


def test_in_a_fresh_process_without_pickle_in_another_environment(digit_rows, path, tmp_path):
    X = digit_rows[1]
    estimator = fitted(digit_rows, CLDLEnsembleClassifier)
    estimator.save(path, optimizer_state=True)
    table, header, data = take_apart(path)
    header["versions"] = {"robust_ensembles": "0.0.1", "torch": "1.0", "unheard of": "3"}
    header["estimator"]["params"]["device"] = "cuda:7"
    del header["estimator"]["params"]["accelerate"]  # a parameter that was added later
    put_together(path, table, header, data)
    np.save(tmp_path / "X.npy", X)
    files = [path, tmp_path / "proba.npy", tmp_path / "X.npy"]
    done = run_python("-c", FRESH, *files, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(files[1]), estimator.predict_log_proba(X))


def test_the_global_random_state_stays(digit_rows, path):
    fitted(digit_rows, CLDLEnsembleClassifier).save(path)
    fitted(digit_rows, module=Linear).save(path.with_suffix(".own"))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(path)
    load(path.with_suffix(".own"), module=Linear)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_estimator_does_not_need_its_file(digit_rows, path):
    estimator = fitted(digit_rows)
    again = round_trip(estimator, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(again, estimator, digit_rows[1])


def test_a_file_is_replaced_whole_or_not_at_all(digit_rows, path, monkeypatch):
    estimator = fitted(digit_rows)
    estimator.save(path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("robust_ensembles._system.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        estimator.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_two_saves_are_the_same_bytes(digit_rows, path):
    estimator = fitted(digit_rows)
    estimator.save(path)
    first = path.read_bytes()
    load(path).save(path)
    assert path.read_bytes() == first


def test_what_cannot_be_saved(digit_rows, path):
    X, _, y, _ = digit_rows
    with pytest.raises(NotFittedError):
        small().save(path)
    with pytest.raises(TypeError, match="last step of a Pipeline"):
        save(make_pipeline(StandardScaler(), small()).fit(X, y), path)

    class Own(VanillaEnsembleClassifier):
        pass

    with pytest.raises(TypeError, match="not a Own"):
        small(Own).fit(X, y).save(path)
    with pytest.raises(FileNotFoundError, match="make it first"):
        small().fit(X, y).save(path.parent / "nowhere" / "model")
    assert not path.exists()


class Busy(torch.optim.SGD):
    """Remembers more than numbers."""

    def step(self, closure):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["clock"] = object()
        return super().step(closure)


def test_an_optimizer_whose_memory_is_no_number(digit_rows, path):
    estimator = fitted(digit_rows, optimizer=Busy)
    with pytest.raises(ValueError, match=r"'clock', a builtins.object.* without optimizer_state"):
        estimator.save(path, optimizer_state=True)
    assert_same(round_trip(estimator, path, optimizer=Busy), estimator, digit_rows[1])


def test_memory_that_is_not_of_single_weights(digit_rows, path):
    """LBFGS keeps lists of steps, which go over all weights."""
    X, _, y, _ = digit_rows
    settings = {"optimizer": torch.optim.LBFGS, "optimizer_params": {"max_iter": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = fitted(digit_rows, n_estimators=1, **settings)
        again = round_trip(estimator, path, optimizer_state=True)
        for one in (estimator, again):
            one.partial_fit(X[:64], y[:64])
    assert_same(again, estimator, X)


def test_a_history_of_139000_steps(digit_rows, path):
    """As 200 epochs of CIFAR-10 in batches of 64 leave it behind."""
    estimator = fitted(digit_rows)
    (row,) = estimator.history_
    history = estimator.net_.history
    for epoch in range(2, 201):
        history.append({**row, "epoch": epoch, "batches": row["batches"][:1] * 695})
    estimator.save(path, optimizer_state=True)
    weights = sum(t.numel() * t.element_size() for t in estimator.module_.state_dict().values())
    assert path.stat().st_size < 3 * weights + 200 * 500
    again = load(path)
    assert_same(again, estimator, digit_rows[1])
    assert again.n_iter_ == 200
    assert again.history_[:, "epoch"] == list(range(1, 201))
    assert again.history_[-1, "batches"] == []


def test_a_history_that_is_too_long_for_a_file(digit_rows, path):
    estimator = fitted(digit_rows)
    estimator.history_.record("note", "a" * 2**25)
    with pytest.raises(ValueError, match="must not record long values in the history"):
        estimator.save(path)
    assert not path.exists()


@pytest.mark.parametrize("through", ["pickle", "joblib"])
def test_pickle_and_joblib(through, digit_rows, path):
    X, _, y, _ = digit_rows
    estimator = fitted(digit_rows, CLDLEnsembleClassifier)
    if through == "pickle":
        again = pickle.loads(pickle.dumps(estimator))
    else:
        joblib.dump(estimator, path)
        again = joblib.load(path)
    assert_same(again, estimator, X)
    for one in (estimator, again):
        one.partial_fit(X[:64], y[:64])
    assert_same(again, estimator, X)


def test_the_header_can_be_read_by_anyone(digit_rows, path):
    fitted(digit_rows).save(path)
    _, header, _ = take_apart(path)
    assert header["format"] == 2
    assert header["estimator"]["kind"] == "VanillaEnsembleClassifier"
    assert header["estimator"]["params"]["lr"] == 0.01
    assert header["net"]["history"][0]["train_loss"] > 0
    assert header["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(header)) == header
