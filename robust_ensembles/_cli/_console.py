"""What the commands write: results to the output stream, all else to the error stream."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from rich import box
from rich.console import Console
from rich.table import Table

# where nobody looks at a screen, a table is as wide as it needs to be
_WIDTH_OF_A_FILE = 2000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def say(text: str = "") -> None:
    """Write a line of the result."""
    _console(error=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Write a line about what goes on."""
    _console(error=True).print(text, soft_wrap=True)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, n_left: int = 1) -> None:
    """Write a table in Markdown; all but the first `n_left` columns are aligned to the right."""
    table = Table(box=box.MARKDOWN)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < n_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("|", "\\|") for cell in row))
    console = _console(error=False)
    with console.capture() as captured:
        console.print(table)
    # without the box's empty edges
    lines = [line.rstrip() for line in captured.get().splitlines()]
    say("\n".join(line for line in lines if line))


@contextmanager
def messages_as_lines() -> Iterator[None]:
    """Show warnings and the package's log as one line each, within the block."""
    logger = logging.getLogger("robust_ensembles")
    handler, level = _Lines(), logger.level
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def prints_told() -> Iterator[None]:
    """Send what is printed within the block, as skorch does, to the error stream."""
    console = _console(error=True)
    coloured = console.is_terminal and not console.no_color
    with redirect_stdout(sys.stderr if coloured else _WithoutColours()):
        yield


class _WithoutColours(io.TextIOBase):
    """The error stream, for a file."""

    def write(self, text: str) -> int:
        sys.stderr.write(_COLOUR.sub("", text))
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage())


def _show_warning(message: Warning | str, *_: object) -> None:
    tell(f"warning: {' '.join(str(message).split())}")


def _console(*, error: bool) -> Console:
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
