"""Models and images that the comparisons share; nobody may change them."""

import pytest
from oracle_models import build, digits


@pytest.fixture(scope="session")
def test_part():
    x, y = digits()
    return x[-300:], y[-300:]


@pytest.fixture(scope="session")
def models():
    return build()
