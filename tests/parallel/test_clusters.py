"""Searches on loky, Dask and Ray: the results of a serial one, with killed workers too."""

import contextlib
import os
import signal
import warnings

import joblib
import pytest
from cluster_searches import KillWorker, assert_same_results, make_search
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from robust_ensembles.parallel import survive_killed_workers


@pytest.fixture(scope="module")
def data(digit_rows):
    X, _, y, _ = digit_rows
    return X, y


@pytest.fixture(scope="module")
def serial(data):
    return make_search().fit(*data)


@pytest.fixture(scope="module")
def workers_see_this_folder():
    """Worker processes unpickle the callbacks above."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield


@pytest.fixture(scope="module")
def loky(workers_see_this_folder):
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.fixture(scope="module")
def dask_cluster(workers_see_this_folder):
    distributed = pytest.importorskip("distributed")

    @contextlib.contextmanager
    def start(**size):
        cluster = distributed.LocalCluster(dashboard_address=":0", **size)
        with cluster, distributed.Client(cluster):
            yield

    return start


@pytest.fixture(scope="module")
def dask(dask_cluster):
    with dask_cluster(n_workers=2, threads_per_worker=1):
        yield


@pytest.fixture(scope="module")
def ray(workers_see_this_folder):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # else it writes one into the user's home
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            register_ray()
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, handler)  # Ray leaves its own


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_same_results_as_serial(backend, data, serial, request):
    request.getfixturevalue(backend)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert_same_results(make_search().fit(*data), serial)


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_killed_worker(backend, data, serial, request, tmp_path):
    request.getfixturevalue(backend)
    killing = KillWorker(tmp_path / "killed")
    with survive_killed_workers(backend, n_jobs=2):
        search = make_search(killing).fit(*data)
    assert (tmp_path / "killed").exists()
    assert_same_results(search, serial)


@pytest.mark.slow
def test_killed_worker_with_the_only_copy_of_the_data(data, serial, dask_cluster, tmp_path):
    """Joblib alone loses the search, see the test below."""
    killing = KillWorker(tmp_path / "killed")
    with dask_cluster(n_workers=1, threads_per_worker=2), survive_killed_workers("dask"):
        search = make_search(killing).fit(*data)
    assert (tmp_path / "killed").exists()
    assert_same_results(search, serial)


def test_joblib_alone_loses_a_search(data, loky, tmp_path):
    """What `survive_killed_workers` says of it; `error_score` is of no use."""
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(TerminatedWorkerError),
    ):
        make_search(KillWorker(tmp_path / "killed"), error_score=0.0).fit(*data)


def test_task_that_kills_all_its_workers(data, loky):
    """Each of two attempts starts processes anew; then the error is told."""
    with survive_killed_workers(n_jobs=2, retries=1), pytest.raises(TerminatedWorkerError):
        make_search(KillWorker()).fit(*data)
    # and the next search finds working processes
    with survive_killed_workers(n_jobs=2, retries=0):
        assert joblib.Parallel()(joblib.delayed(abs)(i) for i in range(-3, 0)) == [3, 2, 1]


def test_exceptions_in_a_fit_are_not_tried_again(data, loky):
    with survive_killed_workers(n_jobs=2), pytest.raises(ValueError, match="eps"):
        make_search().set_params(estimator__attack__eps=-1.0).fit(*data)


def test_wrong_settings():
    with pytest.raises(ValueError, match="Did you mean 'loky'"), survive_killed_workers("locky"):
        pass
    with pytest.raises(ValueError, match="retries"), survive_killed_workers(retries=-1):
        pass
