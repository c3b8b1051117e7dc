"""The same examples on a CUDA device as on the processor."""

import pytest
import torch
from small_models import ensemble, labelled
from test_attacks_batches import ATTACKS

from robust_ensembles.attacks import is_broken

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_as_on_the_processor(name, where):
    """X may lie beside the module or not; the result lies where X does."""
    module = ensemble()
    x, y = labelled(module, 23)
    expected = ATTACKS[name](module, x, y)
    module.cuda()
    found = ATTACKS[name](module, x.to(where), y.to(where))
    assert found.device.type == where
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)
    broken = is_broken(module, found, y.to(where)).cpu()
    assert torch.equal(broken, is_broken(module, expected, y))
