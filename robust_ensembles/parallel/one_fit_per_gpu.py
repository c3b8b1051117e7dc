"""`one_fit_per_gpu`: a separate GPU for each fit among the processes of a machine."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_LOGGER = logging.getLogger("robust_ensembles")
# seconds between two searches for a free device
_PAUSE = 0.2


class _Here(threading.local):
    """What this thread has reserved, and what it had before."""

    held: torch.device | None = None
    before: str | None = None


_HERE = _Here()


@dataclass(frozen=True)
class OneFitPerGPU:
    """Value of the parameter `device` that reserves a free GPU; made by `one_fit_per_gpu`.

    Parameters
    ----------
    devices : tuple of str, or None
    timeout : float or None
    lock_dir : str or None
    """

    devices: tuple[str, ...] | None = None
    timeout: float | None = None
    lock_dir: str | None = None

    @property
    def held(self) -> torch.device | None:
        """The device that this thread has reserved, if it has."""
        return _HERE.held

    @contextmanager
    def reserve(self, only: torch.device | None = None) -> Iterator[torch.device]:
        """Reserve a device for this thread within the context.

        Parameters
        ----------
        only : torch.device, default=None
            The required device, if a fit continues with weights on it.

        Yields
        ------
        device : torch.device
            For a fit inside another one, the device that this thread has already reserved.

        Raises
        ------
        ValueError
            If there is no such device.
        TimeoutError
            If no device became free in time.
        """
        if _HERE.held is not None:
            yield _HERE.held
            return
        name, device, lock = self._wait(self._slots(only))
        try:
            _HERE.held, _HERE.before = device, name
            # some work, such as capturing graphs, is done on the current device
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                yield device
        finally:
            _HERE.held = None
            lock.release()

    def _slots(self, only: torch.device | None) -> dict[str, torch.device]:
        """Devices by the names of their locks, this thread's previous one first."""
        devices = self.devices
        if devices is None:
            devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        if not devices:
            raise ValueError(
                "one_fit_per_gpu() finds no CUDA device here; use device='auto' or 'cpu', or "
                "install a torch build for your GPU"
            )
        slots: dict[str, torch.device] = {}
        seen: Counter[str] = Counter()
        for device in map(_checked, devices):
            name = _lasting_name(device)
            slots[f"{name}-{seen[name]}"] = device
            seen[name] += 1
        if only is not None:
            wanted = _lasting_name(_checked(str(only)))
            slots = {n: d for n, d in slots.items() if _lasting_name(d) == wanted}
            if not slots:
                raise ValueError(f"the weights are on {only}, which is not among {devices}")
        return dict(sorted(slots.items(), key=lambda slot: slot[0] != _HERE.before))

    def _wait(self, slots: dict[str, torch.device]) -> tuple[str, torch.device, FileLock]:
        folder, begin, told = self._lock_folder(), time.monotonic(), False
        while True:
            for name, device in slots.items():
                lock = FileLock(folder / f"{name}.lock")
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0)
                    return name, device, lock
            if self.timeout is not None and time.monotonic() - begin >= self.timeout:
                raise TimeoutError(
                    f"{', '.join(map(str, slots.values()))}: none became free in {self.timeout} s; "
                    "raise the timeout, run fewer fits at once (n_jobs), or see which processes "
                    f"hold the locks in {folder}"
                )
            if not told:
                _LOGGER.info("waiting for one of %s to be free", ", ".join(slots))
                told = True
            time.sleep(_PAUSE)

    def _lock_folder(self) -> Path:
        if self.lock_dir is not None:
            folder = Path(self.lock_dir)
        else:
            folder = Path(tempfile.gettempdir()) / f"robust_ensembles-gpus-{getpass.getuser()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


def one_fit_per_gpu(
    devices: Sequence[str] | None = None,
    *,
    timeout: float | None = None,
    lock_dir: str | os.PathLike[str] | None = None,
) -> OneFitPerGPU:
    """Value for the parameter `device` with which each fit takes a GPU that no other fit uses.

    ``GridSearchCV(CEATEnsembleClassifier(device=one_fit_per_gpu()), grid, n_jobs=4)`` runs four
    fits at a time on a machine with four GPUs, one on each. With fewer GPUs than workers, fits
    wait. The value is part of the estimator, so it works in any process of the training machine:
    workers of joblib, Dask and Ray, or several scripts of one user.

    Parameters
    ----------
    devices : sequence of str, default=None
        Devices to choose from, such as ``["cuda:0", "cuda:2"]``. A device listed twice takes two
        fits. None is all that torch sees, so ``CUDA_VISIBLE_DEVICES`` is respected.
    timeout : float, default=None
        Seconds to wait for a free device; then the fit raises TimeoutError. None waits for ever
        and logs this to ``robust_ensembles``.
    lock_dir : path-like, default=None
        Folder of the lock files, on a local disk of the machine. None is a folder of this user in
        the system's temporary folder; users who share GPUs must give one that all can write to.

    Returns
    -------
    device : OneFitPerGPU

    Raises
    ------
    TypeError
        If `devices` is not a sequence of names.

    Notes
    -----
    A lock is a file named after the identity of the GPU, not its number, and locked by the
    operating system: it is released when its process ends for any reason, and a remaining file has
    no effect.

    The GPU is reserved from the beginning of `fit` or `partial_fit` to its end, including
    pretraining. Weights stay on it, and predictions and scores are computed there without a lock. A
    process takes its previous GPU again if possible: with as many workers as GPUs, each keeps its
    own, and a score is not disturbed by the next fit of another worker.

    Clusters have their own ways to give each worker a GPU, as the only visible one; then leave
    ``device="auto"``. Dask: ``dask_cuda.LocalCUDACluster()``. Ray:
    ``survive_killed_workers("ray", n_jobs=4, ray_remote_args={"num_gpus": 1})``, where the
    reservation includes scores.

    Examples
    --------
    >>> from robust_ensembles import CEATEnsembleClassifier
    >>> from robust_ensembles.parallel import one_fit_per_gpu
    >>> clf = CEATEnsembleClassifier(device=one_fit_per_gpu())
    """
    if isinstance(devices, str):
        raise TypeError(f"devices must be a list of names, such as [{devices!r}]")
    if devices is not None and not devices:
        raise ValueError("devices is empty; None takes all GPUs")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must be 0 seconds or more; got {timeout}")
    names = None if devices is None else tuple(str(device) for device in devices)
    return OneFitPerGPU(names, timeout, None if lock_dir is None else os.fspath(lock_dir))


def _checked(name: str) -> torch.device:
    # with the error message of the estimators for a missing device
    from ..estimators.parameters import resolve_device

    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _lasting_name(device: torch.device) -> str:
    """A name that does not depend on the devices that are visible to a process."""
    if device.type != "cuda":
        return str(device).replace(":", "-")
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
