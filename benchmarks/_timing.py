"""Contenders in turns: medians and ranges of time, and peak memory beside it."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Contender = Callable[[], Any]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Measurement:
    """Seconds of each round, and the most memory that one run took beside what was there before.

    Parameters
    ----------
    seconds : list of float
        Of each round.
    peak_mib : float or None
        Mebibytes; None where the machine does not tell.
    """

    seconds: list[float]
    peak_mib: float | None

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def times_faster_than(self, reference: Measurement) -> tuple[float, float, float]:
        """Median, lowest and highest ratio of the reference's time to this, round by round."""
        pairs = zip(reference.seconds, self.seconds, strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def interleaved(
    contenders: Mapping[str, Contender], *, rounds: int = 7, warm_up: int = 1
) -> dict[str, Measurement]:
    """Run each contender once in every round, so that what disturbs one disturbs all.

    Parameters
    ----------
    contenders : mapping of str to callable
    rounds : int, default=7
    warm_up : int, default=1
        Rounds that do not count.

    Returns
    -------
    measurements : dict of str to Measurement
    """
    for _ in range(warm_up):
        for contender in contenders.values():
            contender()
    peaks = {name: peak_memory(contender) for name, contender in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        # who runs first changes from round to round
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(_time(contenders[name]))
    return {name: Measurement(seconds[name], peaks[name]) for name in contenders}


def peak_memory(contender: Contender) -> float | None:
    """Mebibytes that a run takes at most beside what is there before it, or None."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / _MEBIBYTE
    if not _CLEAR_REFS.exists():
        return None
    # what was freed goes back to the system, and the high-water mark down to what is left
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    contender()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of the process's status, in kibibytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def _time(contender: Contender) -> float:
    start = time.perf_counter()
    contender()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
