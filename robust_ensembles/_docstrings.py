"""Inherited parameters in docstrings, so that `help` and the reference show all of them.

Each class documents its own parameters in a numpydoc section. When a class is created, the
entries of its bases are appended to this section.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import Field
from typing import Any

_HEADING = re.compile(r"^Parameters\n-{3,}\n", re.MULTILINE)
_SECTION = re.compile(r"^\S[^\n]*\n-{3,}\n", re.MULTILINE)
# an entry begins with a line that is not indented
_ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)
_DEFAULT = re.compile(r", default=.*")


def describe_inherited_parameters(cls: type, absent: Iterable[str] = ()) -> None:
    """Append the entries of inherited parameters to a class's docstring.

    Parameters
    ----------
    cls : type
        Left as it is without a docstring of its own, as under ``python -OO``.
    absent : iterable of str
        Inherited names that are not parameters of this class.
    """
    own = vars(cls).get("__doc__")
    if own is None:
        return
    before, entries, after = _split(inspect.cleandoc(own))
    described = {*absent, *(name for entry in entries for name in _names(entry))}
    for entry in _inherited(cls):
        missing = [name for name in _names(entry) if name not in described]
        if missing:
            entries.append(_for_class(cls, entry, missing))
            described.update(missing)
    if entries:
        section = "\n".join(["Parameters", "----------", *entries])
        cls.__doc__ = "\n\n".join(part for part in (before, section, after) if part) + "\n"


def _inherited(cls: type) -> Iterator[str]:
    """Entries of the nearest bases with a docstring, which include those of their own bases."""
    for base in cls.__bases__:
        doc = vars(base).get("__doc__")
        yield from _split(inspect.cleandoc(doc))[1] if doc else _inherited(base)


def _split(doc: str) -> tuple[str, list[str], str]:
    """The text before the section of parameters, its entries, and the text after it."""
    heading = _HEADING.search(doc)
    after = _SECTION.search(doc, heading.end() if heading else 0)
    end = after.start() if after else len(doc)
    entries = _ENTRY.split(doc[heading.end() : end]) if heading else []
    before = doc[: heading.start() if heading else end]
    return before.rstrip(), [entry.rstrip() for entry in entries if entry.strip()], doc[end:]


def _names(entry: str) -> list[str]:
    """The parameters that an entry describes: ``lam, mu : float`` is about two."""
    return [name.strip() for name in entry.partition("\n")[0].partition(" : ")[0].split(",")]


def _for_class(cls: type, entry: str, names: list[str]) -> str:
    """An entry of a base, limited to `names`, with the defaults of `cls`."""
    header, newline, text = entry.partition("\n")
    kind = header.partition(" : ")[2]
    changed = names != _names(entry) or any(name in vars(cls) for name in names)
    if changed:
        defaults = " and ".join(_defaults(cls, names))
        kind = _DEFAULT.sub(lambda _: f", default={defaults}", kind)
    return f"{', '.join(names)} : {kind}{newline}{text}"


def _defaults(cls: Any, names: list[str]) -> Iterator[str]:
    for name in names:
        value = getattr(cls, name)
        value = value.default if isinstance(value, Field) else value
        yield f'"{value}"' if isinstance(value, str) else repr(value)
