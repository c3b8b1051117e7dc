"""Small data that several test folders share."""

import multiprocessing
import signal

import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split

from robust_ensembles.datasets import load_digits_images
from robust_ensembles.training import EnsembleNet


@pytest.fixture(scope="session", autouse=True)
def control_c():
    """Ctrl-C is heard, also where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def children():
    """The processes that the test has started and that still run.

    Those of earlier tests do not count: joblib keeps its workers for the next search.
    """
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


@pytest.fixture
def one_thread():
    """On a busy machine, more threads of torch would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digit_images():
    """X_train, X_test, y_train, y_test: 200 and 100 images of 1 x 8 x 8 pixels in [0, 1]."""
    X, y = load_digits_images()
    return train_test_split(X, y, train_size=200, test_size=100, random_state=0, stratify=y)


@pytest.fixture(scope="session")
def digit_rows(digit_images):
    """The same as rows of 64 features."""
    X_train, X_test, y_train, y_test = digit_images
    return X_train.reshape(200, 64), X_test.reshape(100, 64), y_train, y_test


@pytest.fixture
def untrained(monkeypatch):
    """Fits go as far as the first step."""
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)


@pytest.fixture
def rejects(monkeypatch):
    """An estimator that refuses X and y before it trains."""

    def train(*args, **kwargs):
        pytest.fail("training began")

    monkeypatch.setattr(EnsembleNet, "train_epochs", train)

    def check(estimator, X, y, match, error=ValueError, **fit_params):
        with pytest.raises(error, match=match):
            estimator.fit(X, y, **fit_params)
        with pytest.raises(NotFittedError):
            estimator.predict(X)

    return check
