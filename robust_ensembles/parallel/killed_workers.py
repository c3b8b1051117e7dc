"""`survive_killed_workers`: searches that finish although workers are killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import joblib
from joblib._parallel_backends import LokyBackend
from joblib.externals.loky.process_executor import TerminatedWorkerError

from .._checks import one_of


class Task(NamedTuple):
    """A task of joblib.

    Parameters
    ----------
    call : callable
        A batch of calls.
    promise : Future
        The result that joblib waits for.
    retries : int
        How many times it may still be lost.
    """

    call: Callable[[], Any]
    promise: Future[Any]
    retries: int


class ResubmissionMixin:
    """Joblib backend that resubmits the tasks of killed workers.

    Parameters
    ----------
    retries : int
        How many times a task is resubmitted.
    **params
        Parameters of the backend.
    """

    def __init__(self, *, retries: int, **params: Any) -> None:
        super().__init__(**params)
        self._retries = retries

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None
    ) -> Future[Any]:
        """Run a batch of calls; called by joblib."""
        promise: Future[Any] = Future()
        if callback is not None:
            promise.add_done_callback(callback)
        self._send(Task(func, promise, self._retries))
        return promise

    apply_async = submit  # its name before joblib 1.5

    def _send(self, task: Task) -> None:
        """Hand a task to a worker."""
        raise NotImplementedError


def keep_promise(task: Task, future: Future[Any]) -> None:
    """Pass on the result or exception of a task.

    Parameters
    ----------
    task : Task
    future : Future
        A finished one.
    """
    error = future.exception()
    if error is None:
        task.promise.set_result(future.result())
    else:
        task.promise.set_exception(error)


class ResubmittingLoky(ResubmissionMixin, LokyBackend):
    """loky backend that starts new processes when one was killed.

    loky gives up all of its processes when one dies, and their tasks. These are resubmitted to the
    new processes; earlier results are kept.

    Parameters
    ----------
    retries : int
    **params
        See joblib's `LokyBackend`.
    """

    def __init__(self, *, retries: int, **params: Any) -> None:
        super().__init__(retries=retries, **params)
        self._renewal = threading.Lock()

    def configure(self, n_jobs: int = 1, parallel: Any = None, **settings: Any) -> int:
        """Start or find the processes; called by joblib."""
        self._settings = settings
        granted: int = super().configure(n_jobs=n_jobs, parallel=parallel, **settings)
        return granted

    def _send(self, task: Task) -> None:
        workers = self._workers
        try:
            future = workers.submit(task.call)
        except TerminatedWorkerError:
            # broken before it received this task, so this does not count as a loss
            self._send_again(task, workers)
        else:
            future.add_done_callback(lambda ended: self._receive(task, ended, workers))

    def _receive(self, task: Task, future: Future[Any], workers: Any) -> None:
        lost = isinstance(future.exception(), TerminatedWorkerError)
        if lost and task.retries:
            self._send_again(task._replace(retries=task.retries - 1), workers)
        else:
            keep_promise(task, future)

    def _send_again(self, task: Task, broken: Any) -> None:
        # this may be the thread that manages the broken processes, which must end first
        threading.Thread(target=self._renew_and_send, args=(task, broken), daemon=True).start()

    def _renew_and_send(self, task: Task, broken: Any) -> None:
        try:
            with self._renewal:
                if self._workers is broken:
                    broken.terminate(kill_workers=True)
                    parallel = self.parallel
                    self.configure(n_jobs=parallel.n_jobs, parallel=parallel, **self._settings)
            self._send(task)
        except Exception as error:  # in a thread nobody else would see it
            task.promise.set_exception(error)


_BACKENDS = ("loky", "dask", "ray")


@contextmanager
def survive_killed_workers(
    backend: str = "loky", *, n_jobs: int | None = None, retries: int = 3, **params: Any
) -> Iterator[None]:
    """Run searches on workers that may be killed; their tasks are run again.

    A worker process dies when memory runs out, when a cluster reclaims a machine, or by a crash
    below Python. `error_score` does not help there, as it is about exceptions inside a fit.
    Without this context, a search on joblib's loky or on Ray ends with an error and loses all
    results; a search on Dask continues, unless the data were on the dead worker only.

    Parameters
    ----------
    backend : {"loky", "dask", "ray"}, default="loky"
        Processes of this machine; the Dask cluster of the current `distributed.Client`; or the
        Ray cluster of ``ray.init``, for which this registers joblib's backend. Their libraries
        are the extras ``dask`` and ``ray``.
    n_jobs : int, default=None
        Number of workers where `n_jobs` is not set otherwise: -1 is one for each core. Dask uses
        all workers of its cluster.
    retries : int, default=3
        How many times a lost task is run again; then the search raises the backend's error. On
        Dask it is how often data are sent again, and the scheduler's setting
        ``distributed.scheduler.allowed-failures`` (3) is the number of workers that a task may
        lose.
    **params
        For the backend, as in `joblib.parallel_config`; for example
        ``ray_remote_args={"num_gpus": 1}``.

    Raises
    ------
    ValueError
        For an unknown backend, or `retries` below 0.

    See Also
    --------
    one_fit_per_gpu : Assigns a GPU to each fit.

    Notes
    -----
    A lost fit restarts and, with a fixed `random_state`, gives the same scores. When a process of
    loky dies, loky ends the others, so that up to `n_jobs` fits restart, each with one loss
    counted. A task that kills every worker it runs on still ends the search: give the fits more
    memory (a smaller `batch_size`, fewer workers), or remove that candidate. scikit-learn keeps a
    search's results in memory until its end; they are lost if the main process dies.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.parallel import survive_killed_workers
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(max_epochs=1, device="cpu", random_state=0)
    >>> search = GridSearchCV(clf, {"lr": [0.001, 0.01]}, cv=2)
    >>> with survive_killed_workers("loky", n_jobs=2):  # doctest: +SKIP
    ...     search.fit(X[:200], y[:200])
    """
    one_of(backend, _BACKENDS, "backend")
    if retries < 0:
        raise ValueError(f"retries must be 0 or more; got {retries}")
    with joblib.parallel_config(backend=_make_backend(backend, retries, params), n_jobs=n_jobs):
        yield


def _make_backend(backend: str, retries: int, params: dict[str, Any]) -> Any:
    if backend == "loky":
        return ResubmittingLoky(retries=retries, **params)
    if backend == "dask":
        from .dask_resubmission import ResubmittingDask

        return ResubmittingDask(retries=retries, **params)
    from ray.util.joblib.ray_backend import RayBackend

    # its pool sends tasks to actors in turn, also to dead ones: these must be restarted
    lives = {"max_restarts": -1, "max_task_retries": retries}
    params["ray_remote_args"] = {**lives, **params.get("ray_remote_args", {})}
    return RayBackend(**params)
