"""Output of the commands: lines, tables and files."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import combinations
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

# outside a terminal, a table is as wide as it needs to be
_WIDTH_OF_A_FILE = 2000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def say(text: str = "") -> None:
    """Write a line of the result to stdout."""
    _console(error=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Write a line about the progress to stderr."""
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
    # without the empty lines of the table's border
    lines = [line.rstrip() for line in captured.get().splitlines()]
    say("\n".join(line for line in lines if line))


@contextmanager
def messages_as_lines() -> Iterator[None]:
    """Within the block, show each warning and log record of the package as one line."""
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
    """Within the block, redirect printed text, such as skorch's, to stderr."""
    console = _console(error=True)
    coloured = console.is_terminal and not console.no_color
    with redirect_stdout(sys.stderr if coloured else _WithoutColours()):
        yield


class _WithoutColours(io.TextIOBase):
    """Stderr as a file, without colour codes."""

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


def check_outputs(
    files: Mapping[str, Path | None],
    inputs: Iterable[str | Path],
    *,
    folders: Mapping[str, Path | None] | None = None,
) -> None:
    """Raise, before any work, for output files that could not be written after it.

    Parameters
    ----------
    files : mapping of str to Path or None
        Files to write, by option.
    inputs : iterable of str or Path
        Files and folders to read. Names of data sets may be among them.
    folders : mapping of str to Path or None, default=None
        Folders to write to, by option; they need not exist.

    Raises
    ------
    OSError
        For a file in a missing folder, a path that cannot be written, or a folder that cannot be
        made.
    ValueError
        For an output that is also an input or another output, or is inside a folder of images.
    """
    written = {option: path for option, path in files.items() if path is not None}
    made = {option: path for option, path in (folders or {}).items() if path is not None}
    for path in written.values():
        _check_file(path)
    for path in made.values():
        _check_folder(path)
    outputs = {**written, **made}
    read = [Path(path) for path in inputs]
    for option, path in outputs.items():
        for source in read:
            _check_apart(f"{option} {path}", path, source)
    for (option, path), (other, another) in combinations(outputs.items(), 2):
        if path.resolve() == another.resolve():
            raise ValueError(f"{other} {another} is what {option} is, too: give another path")


def _check_file(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")
    # a device would be replaced by a file
    if (path.exists() and not path.is_file()) or not os.access(folder, os.W_OK):
        raise OSError(f"{path} cannot be written")


def _check_folder(path: Path) -> None:
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be a folder, as {there} is none")
    if not os.access(there, os.W_OK):
        raise OSError(f"{path} cannot be written to")


def _check_apart(what: str, path: Path, source: Path) -> None:
    """Raise if an output is the input itself or is in one of its sub-folders of images."""
    if not source.exists():
        return
    if path.exists() and path.samefile(source):
        raise ValueError(f"{what} is read, and would be destroyed: give another path")
    if source.is_dir() and source.resolve() in path.resolve().parent.parents:
        raise ValueError(f"{what} lies among the images of {source}: give another path")
