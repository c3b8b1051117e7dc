"""A progress bar that says how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ...attacks import Attack


class Steps:
    """What is told of the steps of a long computation; this one shows nothing."""

    def begin(self, label: str) -> None:
        """A step begins."""

    def done(self, cost: float) -> None:
        """It is finished."""


class _Bar(Steps):
    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, ends=None)
        self._total, self._finished, self._start = total, 0.0, time.monotonic()

    def begin(self, label: str) -> None:
        self._progress.update(self._task, description=label)

    def done(self, cost: float) -> None:
        self._finished += cost
        elapsed = time.monotonic() - self._start
        ends = self._start + elapsed * self._total / max(self._finished, 1e-9)
        self._progress.update(self._task, advance=cost, ends=ends)


class _Remaining(ProgressColumn):
    """Time left, from the cost of all steps so far: steps are few and long, and rich forgets."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        if ends is None:
            return Text("time left unknown")
        minutes, seconds = divmod(round(max(0.0, ends - time.monotonic())), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02} left")


@contextmanager
def progress_bar(total: float, *, enabled: bool) -> Iterator[Steps]:
    """Show a bar on the error stream within the block.

    Parameters
    ----------
    total : float
        Cost of all steps together.
    enabled : bool

    Yields
    ------
    steps : Steps
    """
    if not enabled:
        yield Steps()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Remaining())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, total)


def cost(attack: Attack | None) -> float:
    """About how many passes of the module an attack takes; for remaining times only.

    Parameters
    ----------
    attack : Attack or None

    Returns
    -------
    cost : float
    """
    if attack is None:
        return 1.0
    parts: Any = getattr(attack, "attacks", None)
    if parts is not None:
        return sum(cost(part) for part in (parts() if callable(parts) else parts))
    passes = 1.0
    for name in ("n_steps", "n_queries", "n_draws", "n_restarts", "n_target_classes"):
        passes *= getattr(attack, name, 1)
    return passes * len(getattr(attack, "shares", (0,)))
