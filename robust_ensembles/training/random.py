"""Random streams of a fit: derived from one seed, local, and the same after a restart.

There is no state between epochs. Each stream (order of the data, augmentation, attacks, layers such
as dropout) is seeded again in each epoch from the fit's seed, so that an epoch draws the same
numbers whether or not the fit was interrupted before it.
"""

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, stream: str, *position: int) -> int:
    """Seed of one stream at one position.

    Parameters
    ----------
    seed : int
        Seed of the fit.
    stream : str
        Purpose of the numbers.
    *position : int
        Epoch, and other numbers that identify a use.

    Returns
    -------
    seed : int
        Below 2**62.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *position])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(2))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded torch generator on a device."""
    return torch.Generator(device).manual_seed(seed)


class _GlobalState:
    """Saves torch's global random state at the first entry and restores it at the last exit.

    Weight initialisation and dropout can only draw from the global generators. Overlapping fits in
    threads share them; counting the entries prevents one from restoring the state of another.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._entries = 0
        self._saved: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @contextmanager
    def preserved(self) -> Iterator[None]:
        with self.lock:
            if self._entries == 0:
                cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
                self._saved = torch.get_rng_state(), cuda
            self._entries += 1
        try:
            yield
        finally:
            with self.lock:
                self._entries -= 1
                if self._entries == 0 and self._saved is not None:
                    torch.set_rng_state(self._saved[0])
                    if self._saved[1]:
                        torch.cuda.set_rng_state_all(self._saved[1])


_GLOBAL_STATE = _GlobalState()
preserve_global_rng = _GLOBAL_STATE.preserved


def _renew_lock() -> None:
    _GLOBAL_STATE.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # a thread that has no twin in the child may hold the lock
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def private_global_rng(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the block, and restore its state afterwards.

    Parameters
    ----------
    seed : int
    """
    with _GLOBAL_STATE.lock:
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)


def reseed_global_rng(seed: int) -> None:
    """Seed torch's global generators, but not while another thread initialises weights.

    Parameters
    ----------
    seed : int
    """
    with _GLOBAL_STATE.lock:
        torch.manual_seed(seed)


@contextmanager
def seeded_global_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators only within the block, for one thread at a time.

    Parameters
    ----------
    seed : int

    Notes
    -----
    For the initialisation of weights, which must not depend on other threads.
    """
    with _GLOBAL_STATE.lock, _GLOBAL_STATE.preserved():
        torch.manual_seed(seed)
        yield
