"""Memory that runs out: what is said, what is left, and batches that shrink."""

import gc
import logging
import pickle
import subprocess
import sys
import traceback
import weakref

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, LRScheduler
from small_estimators import RaiseAt, every_class, make_full, same_weights
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from robust_ensembles import (
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles._system import is_out_of_memory
from robust_ensembles.exceptions import TrainingMemoryError
from robust_ensembles.persistence import load
from robust_ensembles.training import GaussianNoise

ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 40000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError(ON_CPU),
    "Python": MemoryError,
}


class Memory:
    """How many samples fit, in training or in general, and what happens beyond; shared."""

    error = staticmethod(ERRORS["CPU"])
    limit, limit_in_eval = 10**9, 10**9
    forwards, until = 0, 10**9
    alive = ()

    @classmethod
    def take(cls, x, training):
        cls.forwards += training
        room = cls.limit if training else cls.limit_in_eval
        if len(x) > room or cls.forwards > cls.until:
            activations = x + 1
            cls.alive = (*cls.alive, weakref.ref(activations))
            raise cls.error()


class Limited(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, n_classes))

    def forward(self, x):
        Memory.take(x, self.training)
        return super().forward(x)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    for name in ("error", "limit", "limit_in_eval", "forwards", "until", "alive"):
        monkeypatch.setattr(Memory, name, vars(Memory)[name])
    return Memory


def small(cls=VanillaEnsembleClassifier, **params):
    settings = {"module": Limited, "augmentation": GaussianNoise(0.1), "train_split": 0.2}
    return make_full(cls, **{**settings, **params})


def same(first, second):
    """Weights, optimizer and history to the bit."""
    moments = [
        [s[name] for s in e.net_.optimizer_.state_dict()["state"].values() for name in sorted(s)]
        for e in (first, second)
    ]
    rows = [
        [{k: v for k, v in row.items() if k not in ("dur", "batches")} for row in e.history_]
        for e in (first, second)
    ]
    equal = all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    return equal and rows[0] == rows[1] and same_weights(first, second)


# --- a fixed size ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("caught_as", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_message(data, memory, error, caught_as):
    memory.error, memory.limit = staticmethod(ERRORS[error]), 20
    estimator = small()
    with pytest.raises(caught_as, match="out of memory on cpu with batches of 32 samples") as info:
        estimator.fit(*data)
    assert type(info.value) is TrainingMemoryError
    assert 'Try batch_size=16, or "auto"' in str(info.value)
    assert (str(ERRORS[error]()) or "MemoryError") in str(info.value)
    assert "was enough before" not in str(info.value)
    assert info.value.batch_size == 16
    assert type(info.value.__cause__) is type(ERRORS[error]())
    again = pickle.loads(pickle.dumps(info.value))
    assert str(again) == str(info.value)
    assert again.batch_size == 16


def test_less_data_than_a_batch(data, memory):
    memory.limit = 20
    with pytest.raises(TrainingMemoryError, match=r"batches of 50 samples.*batch_size=25") as info:
        small(batch_size=1000, train_split=None).fit(data[0][:50], data[1][:50])
    assert info.value.batch_size == 25


def test_single_samples(data, memory):
    memory.limit = 0
    for batch_size in (1, "auto"):
        with pytest.raises(TrainingMemoryError, match="batches of 1 samples") as info:
            small(module=LimitedLinear, batch_size=batch_size).fit(*data)
        assert info.value.batch_size == 0
        assert "Try batch_size" not in str(info.value)
        assert "Fewer members" in str(info.value)


class LimitedLinear(nn.Linear):
    def __init__(self, n_classes):
        super().__init__(64, n_classes)

    def forward(self, x):
        Memory.take(x, self.training)
        return super().forward(x)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_finished_epochs_are_kept(data, memory, where):
    """5 batches of 3 members make an epoch: 32 x 5 of 160 samples, then 2 of validation."""
    estimator = small(max_epochs=4)
    if where == "training":
        memory.until = 15 + 8  # in the third batch of epoch 2
    else:
        estimator.set_params(callbacks=[AtEpoch(2, lambda: setattr(memory, "limit_in_eval", 3))])
    with pytest.raises(TrainingMemoryError, match=r"finished epochs \(1\) are kept") as info:
        estimator.fit(*data)
    assert "warm_start=True" in str(info.value)
    memory.until = memory.limit_in_eval = 10**9
    estimator.set_params(callbacks=None)
    assert estimator.n_iter_ == 1
    assert same(estimator, small(max_epochs=1).fit(*data))
    assert not any(module.training for module in estimator.module_.modules())
    assert all(weight.grad is None for weight in estimator.module_.parameters())
    assert np.isfinite(estimator.predict_proba(data[0])).all()
    assert same(estimator.fit(*data), small(max_epochs=4).fit(*data))


class AtEpoch(Callback):
    def __init__(self, epoch, action):
        self.epoch, self.action = epoch, action

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.action()


def test_goes_on_in_smaller_batches(data, memory):
    estimator = small(max_epochs=2, warm_start=True)
    memory.until = 15 + 8
    with pytest.raises(TrainingMemoryError) as info:
        estimator.fit(*data)
    memory.until, memory.limit = 10**9, 16
    estimator.set_params(batch_size=info.value.batch_size).fit(*data)
    assert estimator.n_iter_ == 3
    sizes = estimator.history_[:, "batches", :, "train_batch_size"]
    assert [max(of_epoch) for of_epoch in sizes] == [32, 16, 16]


def test_goes_on_from_checkpoints(data, memory, tmp_path):
    memory.until = 15 + 8
    estimator = small(max_epochs=3, checkpoint_dir=tmp_path)
    with pytest.raises(TrainingMemoryError):
        estimator.fit(*data)
    memory.until = 10**9
    assert same(estimator.fit(*data), small(max_epochs=3).fit(*data))


def test_nothing_is_held(data, memory):
    """Not even while the exception is looked at; the traceback still says where it was."""
    memory.limit = 20
    gc.collect()
    gc.disable()
    try:
        estimator = small()
        with pytest.raises(TrainingMemoryError) as info:
            estimator.fit(*data)
        assert [reference() for reference in memory.alive] == [None]
        assert "in take" in "".join(traceback.format_exception(info.value))
    finally:
        gc.enable()


def test_other_errors_get_out_as_they_are(data, memory):
    memory.error, memory.limit = staticmethod(lambda: RuntimeError("no such kernel")), 20
    for batch_size in (32, "auto"):
        with pytest.raises(RuntimeError, match=r"^no such kernel$") as info:
            small(batch_size=batch_size).fit(*data)
        assert type(info.value) is RuntimeError


def test_callbacks_between_epochs(data):
    """They say themselves what was too large."""
    callback = RaiseAt("on_epoch_end", MemoryError, call=1)
    estimator = small(callbacks=[callback], batch_size="auto")
    with pytest.raises(MemoryError, match="on purpose") as info:
        estimator.fit(*data)
    assert type(info.value) is MemoryError
    assert estimator.n_iter_ == 1


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "std::bad_alloc",
        "MPS backend out of memory (MPS allocated: 9 GB)",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    ],
)
def test_other_messages(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


# --- batch_size="auto" -------------------------------------------------------------------------


@every_class
def test_same_as_with_that_size_from_the_start(data, memory, cls):
    """Including the state of the optimizer, of BatchNorm and of schedules."""
    callbacks = [LRScheduler(LinearLR, start_factor=0.5, total_iters=3)]
    settings = {"max_epochs": 2, "callbacks": callbacks, "warm_start": True}
    memory.limit = 100  # some methods pass several batches at once
    estimator = small(cls, batch_size="auto", **settings).fit(*data)
    assert estimator.batch_size_ in (64, 32)
    assert estimator.batch_size == "auto"
    memory.limit = 10**9
    outright = small(cls, batch_size=estimator.batch_size_, **settings).fit(*data)
    assert same(estimator, outright)
    assert same(estimator.partial_fit(*data), outright.partial_fit(*data))


def test_memory_of_a_method_begins_again(data, memory):
    """FASTEN's, although warm_start keeps it: in the second batch, when some is in it."""

    def once():
        memory.until = 10**9
        return MemoryError()

    memory.error, memory.until = staticmethod(once), 8
    settings = {"max_epochs": 1, "warm_start": True}
    estimator = small(FASTENEnsembleClassifier, batch_size="auto", **settings).fit(*data)
    assert estimator.batch_size_ == 64
    assert same(estimator, small(FASTENEnsembleClassifier, batch_size=64, **settings).fit(*data))


def test_enough_memory(data):
    estimator = small(batch_size="auto").fit(*data)
    assert estimator.batch_size_ == 128
    assert same(estimator, small(batch_size=128).fit(*data))


def test_seed_is_drawn_once(data, memory):
    memory.limit = 30
    given, once = np.random.RandomState(3), np.random.RandomState(3)
    estimator = small(batch_size="auto", random_state=given).fit(*data)
    assert estimator.batch_size_ == 16
    assert same(estimator, small(batch_size=16, random_state=once).fit(*data))
    assert given.randint(1000) == once.randint(1000)


def test_it_is_told(data, memory, caplog):
    memory.limit = 40
    with caplog.at_level(logging.WARNING, "robust_ensembles"):
        small(batch_size="auto").fit(*data)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with batches of 128; training begins again with 64",
        "out of memory with batches of 64; training begins again with 32",
    ]


def test_finished_epochs_settle_it(data, memory):
    estimator = small(batch_size="auto", max_epochs=4)
    memory.until = 3 * 2 + 4  # 2 batches of 3 members make an epoch
    with pytest.raises(TrainingMemoryError, match="batches of 128"):
        estimator.fit(*data)
    assert estimator.n_iter_ == 1
    memory.until = 10**9
    assert same(estimator, small(batch_size=128, max_epochs=1).fit(*data))


def test_members_that_are_trained_before(data, memory):
    """Both find their own size."""
    memory.limit = 40

    def method(batch_size, pretrained):
        settings = {"batch_size": batch_size, "pretrained": pretrained}
        return small(DVERGEEnsembleClassifier, **settings).fit(*data)

    automatic = method("auto", 1)
    sizes = automatic.pretrained_.batch_size_, automatic.batch_size_
    assert sizes == (32, 32)
    source = small(max_epochs=1, batch_size=32, random_state=automatic.pretrained_.random_state)
    outright = method(32, source)
    assert same(automatic.pretrained_, outright.pretrained_)
    assert same(automatic, outright)


def test_auto_goes_on_from_checkpoints(data, memory, tmp_path):
    memory.limit = 40
    settings = {"batch_size": "auto", "max_epochs": 4}
    expected = small(batch_size=32, max_epochs=4).fit(*data)
    memory.forwards, memory.until = 0, 2 + 3 * 15 + 4
    memory.error = staticmethod(
        lambda: MemoryError() if memory.forwards < 9 else KeyboardInterrupt()
    )
    with pytest.raises(KeyboardInterrupt):
        small(checkpoint_dir=tmp_path, **settings).fit(*data)
    memory.limit = memory.until = 10**9
    resumed = small(checkpoint_dir=tmp_path, **settings).fit(*data)
    assert resumed.batch_size_ == 32
    assert same(resumed, expected)


def test_auto_is_saved(data, memory, tmp_path):
    memory.limit = 40
    settings = {"module": "mlp", "module_params": {"hidden_sizes": (8,)}, "augmentation": None}
    estimator = small(batch_size="auto", **settings)
    estimator.fit(*data)
    assert estimator.batch_size_ == 128
    estimator.net_.batch_size = 32
    estimator.partial_fit(*data)
    estimator.fit(*data)
    estimator.save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert (again.batch_size, again.batch_size_) == ("auto", 128)
    assert pickle.loads(pickle.dumps(estimator)).batch_size_ == 128


def test_memory_is_freed_by_reference_counts(data, memory):
    memory.limit = 40
    gc.collect()
    gc.disable()
    try:
        estimator = small(FASTENEnsembleClassifier, batch_size="auto").fit(*data)
        dead = [weakref.ref(estimator), weakref.ref(estimator.estimators_[0]), *memory.alive]
        del estimator
        assert [reference() for reference in dead] == [None] * len(dead)
    finally:
        gc.enable()


# --- predictions -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
def test_predictions_in_smaller_parts(data, memory, error):
    memory.error = staticmethod(ERRORS[error])
    X = np.tile(data[0], (6, 1))
    estimator = small().fit(*data)
    expected = estimator.member_predict_proba(X)
    memory.limit_in_eval = 70
    np.testing.assert_allclose(estimator.member_predict_proba(X), expected, rtol=1e-5)
    assert len(memory.alive) == 3  # 512 to 256, 128 and 64, and not once more for the rest
    memory.limit_in_eval = 0
    with pytest.raises(type(ERRORS[error]())):
        estimator.predict(X)


# --- genuine -----------------------------------------------------------------------------------

GENUINE = """
import resource, sys
import numpy as np, torch
from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.exceptions import TrainingMemoryError

torch.set_num_threads(1)
rng = np.random.default_rng(0)
X, y = rng.random((4096, 16), dtype=np.float32), rng.integers(0, 3, 4096)
settings = dict(
    n_estimators=1, max_epochs=1, device="cpu", random_state=0,
    module_params={"hidden_sizes": (20000,)},
)
VanillaEnsembleClassifier(batch_size=8, **settings).fit(X[:64], y[:64])  # everything is loaded
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 450 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
large = VanillaEnsembleClassifier(batch_size=4096, **settings)
try:
    large.fit(X, y)
except TrainingMemoryError as error:
    assert "batch_size=2048" in str(error), error
    assert "allocate" in str(error), error
else:
    sys.exit("it fits")
assert large.n_iter_ == 0 and np.isfinite(large.predict_proba(X)).all()
automatic = VanillaEnsembleClassifier(batch_size="auto", **settings).fit(X[:64], y[:64])
assert automatic.batch_size_ == 128
large.set_params(batch_size=256).fit(X[:512], y[:512])
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of Linux")
def test_genuine_on_a_cpu():
    """With less address space than a batch takes."""
    done = subprocess.run(
        [sys.executable, "-c", GENUINE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accelerate", ["auto", "cuda_graph"])
def test_genuine_on_cuda(accelerate):
    rng = np.random.default_rng(0)
    X, y = rng.random((2048, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, 2048)
    settings = {
        "module": "resnet20",
        "max_epochs": 1,
        "device": "cuda",
        "random_state": 0,
        "accelerate": accelerate,
    }
    small = VanillaEnsembleClassifier(batch_size=16, **settings).fit(X[:64], y[:64])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        large = VanillaEnsembleClassifier(batch_size=2048, **settings)
        with pytest.raises(TrainingMemoryError, match="batch_size=1024") as info:
            large.fit(X, y)
        # weights and one prediction's worth of nothing: not the batch, nor its activations
        assert torch.cuda.memory_allocated() - before < 8 * 2**20, info
        assert np.isfinite(large.predict_proba(X[:600])).all()
        automatic = VanillaEnsembleClassifier(batch_size="auto", **settings).fit(X, y)
        assert automatic.batch_size_ <= 128
        outright = VanillaEnsembleClassifier(batch_size=automatic.batch_size_, **settings)
        assert outright.fit(X, y).batch_size_ == automatic.batch_size_
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert small.n_iter_ == 1
