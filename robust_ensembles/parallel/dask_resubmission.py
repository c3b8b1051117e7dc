"""Joblib backend for Dask that resubmits the tasks of killed workers."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, Future
from typing import Any

from joblib._dask import DaskDistributedBackend

from .killed_workers import ResubmissionMixin, Task, keep_promise

# seconds until a cluster notices that a worker is gone
_PAUSE = 1.0


class ResubmittingDask(ResubmissionMixin, DaskDistributedBackend):
    """Dask backend that sends data again if they were lost with a worker.

    Dask itself runs a killed worker's tasks on another one, unless the data sent by joblib were on
    the dead worker only: then it cancels the tasks.

    Parameters
    ----------
    retries : int
    **params
        See joblib's `DaskDistributedBackend`.
    """

    def _send(self, task: Task) -> None:
        self.client.loop.add_callback(self._send_data_and_task, task)

    async def _send_data_and_task(self, task: Task) -> None:
        inherited = DaskDistributedBackend
        submit = getattr(inherited, "submit", inherited.apply_async)
        try:
            prepared = await super()._to_func_args(task.call)
            ended = submit(self, prepared, _ignore)
        except Exception as error:  # such as the end of the worker that is sent to
            await asyncio.sleep(_PAUSE)
            self._send_again(task, error)
        else:
            ended.add_done_callback(lambda future: self._receive(task, future))

    async def _to_func_args(self, func: Any) -> Any:
        return func  # prepared before

    def _receive(self, task: Task, future: Future[Any]) -> None:
        # joblib takes a cancellation as a result
        outcome = future.exception() or future.result()
        if isinstance(outcome, CancelledError):
            self._send_again(task, outcome)
        else:
            keep_promise(task, future)

    def _send_again(self, task: Task, error: Exception) -> None:
        if not task.retries:
            task.promise.set_exception(error)
            return
        # the data may be lost
        self.data_futures.clear()
        self.call_data_futures.clear()
        self._send(task._replace(retries=task.retries - 1))

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return a task's result, or raise its exception; called by joblib."""
        return super().retrieve_result_callback(out.result())


def _ignore(_: Any) -> None:
    """Ignore a result; errors are taken from the future."""
