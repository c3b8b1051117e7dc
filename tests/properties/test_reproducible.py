"""One seed, one result: to the bit, in threads too, and without a trace outside."""

import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from small_estimators import CLASSES, RaiseAt, every_class, make, make_full, same_weights
from torch import nn

from robust_ensembles.attacks import PGD
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.training import (
    GaussianNoise,
    NoisyCopies,
    RandomCrop,
    RandomHorizontalFlip,
)


class WithDropout(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, n_classes))


@every_class
def test_to_the_bit(digit_rows, cls):
    X, _, y, _ = digit_rows
    fit = make_full(cls, module=WithDropout).fit(X, y)
    torch.rand(7)
    assert same_weights(fit, make_full(cls, module=WithDropout).fit(X, y))
    assert not same_weights(fit, make_full(cls, module=WithDropout, random_state=1).fit(X, y))


def test_augmentation_to_the_bit(digit_images):
    X, _, y, _ = digit_images
    transforms = [RandomCrop(1), RandomHorizontalFlip(), GaussianNoise(0.1), NoisyCopies(0.1)]
    settings = {"module": "mlp", "augmentation": transforms}
    fit = make(**settings).fit(X, y)
    assert same_weights(fit, make(**settings).fit(X, y))
    for i in range(4):
        without = transforms[:i] + transforms[i + 1 :]
        assert not same_weights(fit, make(module="mlp", augmentation=without).fit(X, y))


def test_random_state_instance_moves_on(digit_rows):
    X, _, y, _ = digit_rows
    state = np.random.RandomState(0)
    first, second = (make(random_state=state).fit(X, y) for _ in range(2))
    assert not same_weights(first, second)


@every_class
def test_global_random_states_stay(digit_rows, cls):
    X, X_test, y, y_test = digit_rows
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    estimator = make_full(cls, module=WithDropout, train_split=0.2).fit(X, y).partial_fit(X, y)
    estimator.predict(X_test)
    robust_accuracy_score(estimator, X_test, y_test, attack=PGD(eps=0.1, random_state=None))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]  # noqa: NPY002


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_global_random_state_stays_after_a_failure(digit_rows, error):
    X, _, y, _ = digit_rows
    before = torch.get_rng_state()
    with pytest.raises(error):
        make(callbacks=[RaiseAt("on_batch_end", error, call=9)]).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads(digit_rows):
    X, _, y, _ = digit_rows
    before = torch.get_rng_state()

    def fit(seed):
        return make(CLASSES[seed % len(CLASSES)], random_state=seed).fit(X, y)

    found = Parallel(n_jobs=4, backend="threading")(delayed(fit)(seed) for seed in range(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(same_weights(found[seed], fit(seed)) for seed in range(6))


def test_epoch_in_another_thread_does_not_reseed_initial_weights(digit_rows):
    X, _, y, _ = digit_rows
    other_thread = []

    class Slow(nn.Sequential):
        def __init__(self, n_classes):
            first = nn.Linear(64, 16)
            for thread in other_thread:
                thread.start()
                thread.join(timeout=0.5)  # enough for an epoch, were it not kept waiting
            super().__init__(first, nn.Linear(16, n_classes))

    settings = {"module": Slow, "n_estimators": 1, "max_epochs": 1}
    expected = make(**settings).fit(X, y)
    other = make(max_epochs=1).fit(X, y)
    other_thread.append(threading.Thread(target=other.partial_fit, args=(X, y)))
    assert same_weights(make(**settings).fit(X, y), expected)
    other_thread[0].join()


@pytest.fixture
def no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("event", [None, "on_train_begin", "on_batch_end"])
@every_class
def test_memory_is_freed_by_reference_counts(digit_rows, cls, event):
    """As after an out-of-memory error in a grid search, where the next fit needs the room."""
    X, X_test, y, _ = digit_rows
    callbacks = [RaiseAt(event, RuntimeError, call=1)] if event else None
    estimator = make_full(cls, train_split=0.2, callbacks=callbacks)
    if event:
        with pytest.raises(RuntimeError, match="on purpose") as info:
            estimator.fit(X, y)
        del info
    else:
        estimator.fit(X, y).predict(X_test)
    dead = [weakref.ref(estimator), weakref.ref(estimator.estimators_[0])]
    del estimator
    assert [reference() for reference in dead] == [None, None]
