"""Searches on loky, Dask and Ray: the results of a serial one, with killed workers too."""

import contextlib
import os
import signal
import warnings

import joblib
import numpy as np
import pytest
from cluster_searches import KillWorker, assert_same_results, make_search
from joblib.externals.loky.process_executor import TerminatedWorkerError
from worker_tasks import fail_once, kill_once

from robust_ensembles.parallel import survive_killed_workers


@pytest.fixture(scope="module")
def data(digit_rows):
    X, _, y, _ = digit_rows
    return X, y


@pytest.fixture(scope="module")
def serial(data):
    return make_search().fit(*data)


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


def test_wrong_settings():
    with pytest.raises(ValueError, match="Did you mean 'loky'"), survive_killed_workers("locky"):
        pass
    with pytest.raises(ValueError, match="retries"), survive_killed_workers(retries=-1):
        pass


def test_task_that_kills_all_its_workers(loky):
    """Each of two attempts starts processes anew; then the error is told."""
    kill = joblib.delayed(signal.raise_signal)(signal.SIGKILL)
    with survive_killed_workers(n_jobs=2, retries=1), pytest.raises(TerminatedWorkerError):
        joblib.Parallel()([kill])
    # and the next search finds working processes
    with survive_killed_workers(n_jobs=2, retries=0):
        assert joblib.Parallel()(joblib.delayed(abs)(i) for i in range(-3, 0)) == [3, 2, 1]


def test_exceptions_in_a_task_are_not_tried_again(loky, tmp_path):
    with survive_killed_workers(n_jobs=2), pytest.raises(ValueError, match="on purpose"):
        joblib.Parallel()([joblib.delayed(fail_once)(tmp_path / "failed")])


# workers that have imported torch serve the next file, too

BACKENDS = ["loky", "dask", "ray"]
SLOW_ELSEWHERE = ["loky", *(pytest.param(b, marks=pytest.mark.slow) for b in BACKENDS[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_results_as_serial(backend, data, serial, request):
    request.getfixturevalue(backend)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert_same_results(make_search().fit(*data), serial)


@pytest.mark.parametrize("backend", SLOW_ELSEWHERE)
def test_a_search_with_a_killed_worker(backend, data, serial, request, tmp_path):
    request.getfixturevalue(backend)
    killing = KillWorker(tmp_path / "killed")
    with survive_killed_workers(backend, n_jobs=2):
        search = make_search(killing).fit(*data)
    assert (tmp_path / "killed").exists()
    assert_same_results(search, serial)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_tasks_with_a_killed_worker(backend, request, tmp_path):
    """With data that joblib sends to the workers once."""
    request.getfixturevalue(backend)
    array = np.arange(1000.0)
    with survive_killed_workers(backend, n_jobs=2):
        calls = (joblib.delayed(kill_once)(tmp_path / "killed", i, array) for i in range(6))
        assert joblib.Parallel()(calls) == [i * array.sum() for i in range(6)]
    assert (tmp_path / "killed").exists()


@pytest.mark.slow
def test_killed_worker_with_the_only_copy_of_the_data(data, serial, dask_cluster, tmp_path):
    """Joblib alone loses the search, see the test below."""
    killing = KillWorker(tmp_path / "killed")
    with dask_cluster(n_workers=1, threads_per_worker=2), survive_killed_workers("dask"):
        search = make_search(killing).fit(*data)
    assert (tmp_path / "killed").exists()
    assert_same_results(search, serial)


@pytest.mark.slow
def test_joblib_alone_loses_a_search(data, loky, tmp_path):
    """What `survive_killed_workers` says of it; `error_score` is of no use."""
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(TerminatedWorkerError),
    ):
        make_search(KillWorker(tmp_path / "killed"), error_score=0.0).fit(*data)
