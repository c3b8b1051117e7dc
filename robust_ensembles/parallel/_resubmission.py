"""Tasks that are lost with a killed worker are submitted again: the part that backends share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from joblib._parallel_backends import LokyBackend
from joblib.externals.loky.process_executor import TerminatedWorkerError


class Task(NamedTuple):
    """What joblib wants to be run.

    Parameters
    ----------
    call : callable
        A batch of calls.
    promise : Future
        What joblib waits for.
    retries : int
        How many times it may be lost again.
    """

    call: Callable[[], Any]
    promise: Future[Any]
    retries: int


class ResubmissionMixin:
    """Joblib backend whose tasks outlive the worker that they ran on.

    Parameters
    ----------
    retries : int
        How many times a task is submitted again.
    **params
        Of the backend.
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
    """Pass on what became of a task.

    Parameters
    ----------
    task : Task
    future : Future
        That has ended.
    """
    error = future.exception()
    if error is None:
        task.promise.set_result(future.result())
    else:
        task.promise.set_exception(error)


class ResubmittingLoky(ResubmissionMixin, LokyBackend):
    """loky, with a new set of processes when one of them was killed.

    loky gives up all of its processes when one dies, and every task that they have. Those go to
    the new processes; results that came before are kept.

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
            # broken before it got this task, which so was not lost once more
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
        # this may be the thread that manages the broken processes, and has to end first
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
