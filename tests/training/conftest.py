"""Networks of these tests are drawn the same each time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
