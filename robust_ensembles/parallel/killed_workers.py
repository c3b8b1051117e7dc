"""Searches that finish although workers are killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import joblib

from .._checks import one_of
from ._resubmission import ResubmittingLoky

_BACKENDS = ("loky", "dask", "ray")


@contextmanager
def survive_killed_workers(
    backend: str = "loky", *, n_jobs: int | None = None, retries: int = 3, **params: Any
) -> Iterator[None]:
    """Run searches on workers that may be killed; what they were doing is done again.

    A worker process dies when memory runs out, when a cluster takes a machine back, or by a crash
    below Python. `error_score` does not help there, as it is about exceptions inside a fit.
    Without this context a search on joblib's loky or on Ray ends with an error and loses all
    results; one on Dask goes on, unless the data were on the dead worker only.

    Parameters
    ----------
    backend : {"loky", "dask", "ray"}, default="loky"
        Processes of this machine; the Dask cluster of the current `distributed.Client`; or the
        Ray cluster of ``ray.init``, for which this registers joblib's backend. Their libraries
        are the extras ``dask`` and ``ray``.
    n_jobs : int, default=None
        Workers, for all that says nothing itself: -1 is one for each core. Dask takes all that
        its cluster has.
    retries : int, default=3
        How many times a task is run again after it was lost; then the search raises the
        backend's error. On Dask it is how often data are sent again, and the scheduler's setting
        ``distributed.scheduler.allowed-failures`` (3) counts the workers that a task may lose.
    **params
        For the backend, as in `joblib.parallel_config`; for example
        ``ray_remote_args={"num_gpus": 1}``.

    Raises
    ------
    ValueError
        For an unknown backend, or `retries` below 0.

    See Also
    --------
    one_fit_per_gpu : Which GPU each fit takes.

    Notes
    -----
    A fit that was lost starts anew and, with a fixed `random_state`, gives the same scores. When
    a process of loky dies, loky ends the others, so that up to `n_jobs` fits start anew, and all
    of them count one loss. A task that kills each worker it gets ends the search after all: give
    the fits more memory (a smaller `batch_size`, fewer workers), or take that candidate out.
    scikit-learn keeps a search's results in memory until its end; if the main process dies, they
    are gone.

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

    # its pool sends tasks to actors in turn, dead ones too: they have to come back
    lives = {"max_restarts": -1, "max_task_retries": retries}
    params["ray_remote_args"] = {**lives, **params.get("ray_remote_args", {})}
    return RayBackend(**params)
