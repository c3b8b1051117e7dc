"""Workers that several files share: new ones would have to import torch again."""

import os

import pytest
from joblib.externals.loky import get_reusable_executor


@pytest.fixture(scope="session")
def workers_see_this_folder():
    """Worker processes unpickle functions and callbacks of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


@pytest.fixture(scope="session")
def loky(workers_see_this_folder):
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
