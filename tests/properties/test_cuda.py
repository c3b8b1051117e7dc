"""The same contract on a CUDA device; skipped where there is none."""

import pickle

import numpy as np
import pytest
import torch
from small_estimators import CLASSES

from robust_ensembles.attacks import PGD
from robust_ensembles.attacks.engine.noise import sample_keys, uniform
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.training import RandomCrop, RandomHorizontalFlip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("classifier", CLASSES)
def test_fits_predicts_and_is_attacked_on_cuda(classifier):
    rng = np.random.default_rng(0)
    X, y = rng.random((96, 1, 16, 16), dtype=np.float32), rng.integers(0, 5, 96)
    state = torch.cuda.get_rng_state()
    clf = classifier(
        "lenet5",
        max_epochs=2,
        batch_size=32,
        random_state=0,
        augmentation=[RandomCrop(2), RandomHorizontalFlip()],
    ).fit(X, y)
    assert clf.device_.type == "cuda"
    assert torch.equal(state, torch.cuda.get_rng_state())
    accuracy = robust_accuracy_score(clf, X, y, attack=PGD(eps=0.05))
    assert accuracy <= clf.score(X, y)
    on_cpu = pickle.loads(pickle.dumps(clf)).as_module().cpu()
    expected = on_cpu(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(clf.predict_log_proba(X), expected, atol=1e-3)


def test_noise_of_a_sample_is_the_same_on_every_device():
    x = torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    here = uniform(sample_keys(x, 3), x.shape[1:], x.dtype)
    there = uniform(sample_keys(x.cuda(), 3), x.shape[1:], x.dtype)
    assert torch.equal(here, there.cpu())
