"""Replayed functions and training steps, by the recorder that computes instead of a GPU."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from replaying import Replays, TapeRecorder, fitted
from skorch.callbacks import GradientNormClipping, LRScheduler
from small_estimators import CLASSES
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from robust_ensembles import (
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.attacks.engine.ascent import Objective
from robust_ensembles.attacks.engine.balls import NORMS
from robust_ensembles.attacks.engine.noise import sample_keys
from robust_ensembles.contrib.cuda_graph import (
    EagerRecorder,
    NotCapturableError,
    Recorder,
    Replayed,
    _set_capturable,
    capture_rules,
    place,
)
from robust_ensembles.modules import MLP, Ensemble

# drawn on the host in each step, see below; DVERGE draws its layers once in an epoch
DRAWING = (LAFEDEnsembleClassifier, FASTENEnsembleClassifier)
REPLAYABLE = [cls for cls in CLASSES if cls not in DRAWING]
# in a default run: second derivatives, a module beside the members, a recording for each epoch,
# and crafted samples with a calibration
COVERING = [
    GALEnsembleClassifier,
    CLDLEnsembleClassifier,
    DVERGEEnsembleClassifier,
    CEATEnsembleClassifier,
]


def covered(classes):
    return [c if c in COVERING else pytest.param(c, marks=pytest.mark.slow) for c in classes]


# ---------------------------------------------------------------- the rules of a capture


def _adds_after_backward(x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
    return (gradient + gradient.mean().item()).sum()


y = torch.tensor([0, 2, 1])
FORBIDDEN = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool(x.any()),
    "mask": lambda x: x[x > 0.5],
    "mask in backward": lambda x: x[x.detach() > 2].sum(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "numbers of the host": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "a list as an index": lambda x: x[[0, 1]],
    "an array": lambda x: torch.from_numpy(np.ones(3)),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "another device": lambda x: x.to("meta"),
    "a factorisation that is checked": lambda x: torch.linalg.solve(x @ x.T, x),
    "after a backward pass": _adds_after_backward,
    "one_hot of unknown width": lambda x: F.one_hot(y),
}
ALLOWED = {
    "arithmetic": lambda x: torch.where(x > 0.5, x, 0.0).clamp(0, 1).sum(),
    "numbers as indices": lambda x: x[y, torch.arange(3)],
    "gather": lambda x: x.gather(1, y[:, None]),
    "masked_fill": lambda x: x.clone().masked_fill_(x > 0.5, 0.0),
    "one_hot": lambda x: F.one_hot(y, 3),
    "cross-entropy": lambda x: F.cross_entropy(x, y),
    "log-determinant": lambda x: torch.linalg.slogdet(x @ x.T + torch.eye(3)).logabsdet,
    "dropout": lambda x: F.dropout(x, 0.5),
    "another type": lambda x: x.double(),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_rules_forbid_what_needs_the_host(name):
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotCapturableError) as raised, capture_rules():
        FORBIDDEN[name](x)
    assert place(raised.value).startswith("test_replay.py:")


@pytest.mark.parametrize("name", ALLOWED)
def test_rules_allow_what_stays_on_the_device(name):
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng([]), capture_rules():
        ALLOWED[name](x)


def test_rules_end_with_their_context():
    with capture_rules():
        pass
    assert torch.ones(1).item() == 1.0


# ---------------------------------------------------------------- replayed functions


class Counting(Recorder):
    """Computes like `EagerRecorder`, and notes what it was asked for."""

    n_warm_ups = 2

    def __init__(self, fail=False):
        self.asked, self.fail = [], fail

    def warm_up(self, run):
        self.asked.append("warm up")
        return run()

    def record(self, run):
        self.asked.append("record")
        if self.fail:
            raise RuntimeError("not permitted")

        def replay():
            self.asked.append("replay")
            return run()

        return replay


def test_records_after_the_warm_ups_and_computes_each_call_once():
    recorder, total = Counting(), torch.zeros(())
    add = Replayed(lambda x: total.add_(x.sum()), recorder)
    found = [add(torch.full((2,), float(i))).item() for i in range(5)]
    assert found == [0.0, 2.0, 6.0, 12.0, 20.0]
    assert recorder.asked == ["warm up"] * 2 + ["record"] + ["replay"] * 3


def test_results_are_copies_and_arguments_left_alone():
    double = Replayed(lambda x: (2 * x, x), EagerRecorder())
    first = torch.ones(2)
    results = [double(first + i) for i in range(6)]
    for i, (twice, same) in enumerate(results):
        assert torch.equal(same, first + i)
        assert torch.equal(twice, 2 * first + 2 * i)
    assert torch.equal(first, torch.ones(2))


def test_each_shape_and_type_is_recorded_by_itself():
    recorder = Counting()
    total = Replayed(lambda x: x.sum(), recorder)
    for x in (torch.ones(3), torch.ones(2), torch.ones(3).double()):
        for _ in range(3):
            assert total(x) == x.sum()
    assert recorder.asked.count("record") == 3


def test_a_new_key_is_recorded_anew_and_one_that_always_changes_never():
    recorder, rate = Counting(), [1.0]
    scale = Replayed(lambda x: rate[0] * x, recorder)
    for rate[0] in (1.0,) * 4 + (0.1,) * 3:
        assert torch.allclose(scale(torch.ones(1), key=rate[0]), torch.tensor(rate[0]))
    assert recorder.asked.count("record") == 2
    recorder.asked.clear()
    for step in range(5):
        scale(torch.ones(1), key=step)
    assert set(recorder.asked) == {"warm up"}


def test_a_capture_that_fails_is_logged_once_and_nothing_is_lost(caplog):
    recorder, total = Counting(fail=True), torch.zeros(())
    add = Replayed(lambda x: total.add_(x.sum()), recorder)
    with caplog.at_level(logging.WARNING, "robust_ensembles"):
        for _ in range(6):
            add(torch.ones(1))
    assert total == 6
    assert recorder.asked.count("record") == 1
    assert [record.message.endswith("not permitted") for record in caplog.records] == [True]


def test_buckets_pad_to_the_next_power_of_two_or_the_largest_batch():
    batches = []

    def square(x, scale):
        batches.append(x.clone())
        return scale * x.square()

    squared = Replayed(square, Counting(), buckets=True)
    generator = torch.Generator().manual_seed(0)
    for n in (100, 90, 64, 33, 5, 1, 100):
        x = torch.rand(n, 2, generator=generator)
        assert torch.equal(squared(x, torch.tensor(2.0)), 2 * x.square())
        assert torch.equal(batches[-1], torch.cat([x, x[:1].expand(len(batches[-1]) - n, 2)]))
    assert [len(batch) for batch in batches] == [100, 100, 64, 64, 8, 1, 100]


def test_an_attack_of_any_number_of_samples_by_buckets():
    ensemble, x, labels = _members_and_batch()
    objective = Objective(ensemble, "margin")
    replayed = Replayed(objective.evaluate, EagerRecorder(), buckets=True)
    for n in [9, 9, 9, 9, 7, 6, 5, 7, 3, 1]:
        found = replayed(x[:n], labels[:n])
        for field, expected in objective.evaluate(x[:n], labels[:n])._asdict().items():
            torch.testing.assert_close(getattr(found, field), expected, rtol=1e-12, atol=1e-12)


def _members_and_batch():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        ensemble = Ensemble([MLP((4,), 3).double() for _ in range(2)]).eval()
        x = torch.rand(9, 4, dtype=torch.float64)
    return ensemble.requires_grad_(False), x, torch.arange(9) % 3


# ---------------------------------------------------------------- seeds as tensors


@pytest.mark.parametrize("seed", [0, 7, -3, 2**61 + 12345, 2**62 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_is_the_same_as_a_tensor(seed, dtype):
    x = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    tensor = torch.tensor(seed)
    assert torch.equal(sample_keys(x, seed), sample_keys(x, tensor))
    assert torch.equal(sample_keys(x, seed), sample_keys(x, seed % 2**62))
    assert tensor == seed
    for norm, ball in NORMS.items():
        expected = ball(x, 0.1, (0.0, 1.0)).random_point(seed)
        assert torch.equal(expected, ball(x, 0.1, (0.0, 1.0)).random_point(tensor)), norm


def test_a_seed_is_not_read_on_the_host():
    x, seed = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor(5)
    with capture_rules():
        keys = sample_keys(x, seed)
        NORMS["linf"](x, 0.1, (0.0, 1.0)).random_point(seed)
        seed.add_(1)
        others = sample_keys(x, seed)
    assert not torch.equal(keys, others)


# ---------------------------------------------------------------- training steps


@pytest.fixture
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def replays(monkeypatch):
    return Replays(monkeypatch, TapeRecorder())


def dropping(input_shape, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, n_classes))


def _assert_same_fit(plain, replayed):
    losses = plain.history_[:, "train_loss"]
    assert losses == pytest.approx(replayed.history_[:, "train_loss"], rel=1e-10)
    columns = [set(e.history_[0]) - {"batches", "dur"} for e in (plain, replayed)]
    assert columns[0] == columns[1]
    for (name, expected), found in zip(
        plain.module_.state_dict().items(), replayed.module_.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=name)


# of the three epochs, those that need a recording of their own
OF_EPOCH = (TRSEnsembleClassifier, DVERGEEnsembleClassifier)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("classifier", covered(REPLAYABLE))
def test_replayed_steps_train_as_plain_ones_do(classifier, replays):
    plain = fitted(classifier, lr_milestones=(1,))
    replays.start()
    replayed = fitted(classifier, lr_milestones=(1,))
    assert replays.numbers == [0, 1, 2, 3, 4, 5] * 3
    assert replays.recorder.n_recordings == (3 if classifier in OF_EPOCH else 2)
    _assert_same_fit(plain, replayed)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("params", "n_recordings"),
    [
        ({"optimizer": "sgd", "optimizer_params": {"momentum": 0.9}}, 1),
        ({"optimizer": "adamw", "callbacks": [LRScheduler(ExponentialLR, gamma=0.5)]}, 3),
        ({"module": dropping}, 1),
        ({"attack": PGD(norm="linf", eps=0.1, n_steps=1), "attack_target": "member"}, 1),
    ],
)
def test_settings_and_random_numbers_reach_replayed_steps(params, n_recordings, replays):
    plain = fitted(GALEnsembleClassifier, **params)
    replays.start()
    replayed = fitted(GALEnsembleClassifier, **params)
    assert replays.recorder.n_recordings == n_recordings
    _assert_same_fit(plain, replayed)


@pytest.mark.parametrize(
    ("classifier", "params", "reason"),
    [
        (FASTENEnsembleClassifier, {}, "seed that lies on the device"),
        *(
            pytest.param(cls, params, "seed that lies on the device", marks=pytest.mark.slow)
            for cls, params in (
                (LAFEDEnsembleClassifier, {}),
                (DVERGEEnsembleClassifier, {"layer_schedule": "step"}),
            )
        ),
        (
            VanillaEnsembleClassifier,
            {"callbacks": [("clip", GradientNormClipping(1.0))]},
            "the callback 'clip'",
        ),
        (VanillaEnsembleClassifier, {"optimizer": torch.optim.Adagrad}, "Adagrad need the host"),
    ],
)
def test_steps_that_cannot_be_replayed_say_so_once_and_run(
    classifier, params, reason, replays, caplog
):
    plain = fitted(classifier, **params)
    replays.start()
    with caplog.at_level(logging.WARNING, "robust_ensembles"):
        found = fitted(classifier, **params)
    assert not replays.numbers
    (record,) = caplog.records
    assert reason in record.message
    assert ("(random.py:" in record.message) == ("seed" in reason)
    for expected, tensor in zip(
        plain.module_.state_dict().values(), found.module_.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_adam_counts_beside_its_weights_and_goes_back(fused):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], fused=fused)
    weight.sum().backward()
    optimizer.step()
    _set_capturable(optimizer, [True])
    assert optimizer.param_groups[0]["capturable"]
    assert optimizer.state[weight]["step"] == 1
    _set_capturable(optimizer, [False])
    optimizer.step()
    assert optimizer.state[weight]["step"] == 2
    sgd = torch.optim.SGD([weight], lr=0.1)
    _set_capturable(sgd, [True])
    assert "capturable" not in sgd.param_groups[0]
