"""Whether what a command writes can be written, and destroys nothing that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path


def check_outputs(
    files: Mapping[str, Path | None],
    inputs: Iterable[str | Path],
    *,
    folders: Mapping[str, Path | None] | None = None,
) -> None:
    """Raise, before any work, for what could not be written after it.

    Parameters
    ----------
    files : mapping of str to Path or None
        Files to write, by their options.
    inputs : iterable of str or Path
        What is read. Names of data sets may be among them.
    folders : mapping of str to Path or None, default=None
        Folders to write to, by their options; they need not exist.

    Raises
    ------
    OSError
        For a file in a missing folder or where no file can be, for a folder that cannot be made.
    ValueError
        For an output that is an input, lies among a folder's images, or is another output.
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
    """Raise if a path is what is read, or lies in one of its sub-folders, which are classes."""
    if not source.exists():
        return
    if path.exists() and path.samefile(source):
        raise ValueError(f"{what} is read, and would be destroyed: give another path")
    if source.is_dir() and source.resolve() in path.resolve().parent.parents:
        raise ValueError(f"{what} lies among the images of {source}: give another path")
