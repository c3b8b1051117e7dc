"""Lists of methods, attacks and losses that stand in files, written from where they are declared.

``make lists`` runs this. A list stands between two comments with its name, ``methods: begin`` and
``methods: end``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from robust_ensembles import _registry

ROOT = Path(__file__).parents[1]
WIDTH = 100


def load_declarations() -> None:
    """Import every file of the two rooms, also one that no list has yet."""
    for room in ("estimators", "attacks"):
        folder: ModuleType = import_module(f"robust_ensembles.{room}")
        for module in iter_modules(folder.__path__, f"{folder.__name__}."):
            import_module(module.name)


# ------------------------------------------------------------------------------------ Python


def _sorted(names: Iterable[str]) -> list[str]:
    """Names as ruff orders them: constants, classes, the rest."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def _import(module: str, names: Iterable[str], indent: str = "") -> str:
    ordered = _sorted(names)
    line = f"{indent}from {module} import {', '.join(ordered)}"
    if len(line) <= WIDTH:
        return line
    inner = "".join(f"\n{indent}    {name}," for name in ordered)
    return f"{indent}from {module} import ({inner}\n{indent})"


def _exported(names: Iterable[str], sign: str = "+=") -> str:
    return f"__all__ {sign} [" + "".join(f'\n    "{name}",' for name in _sorted(names)) + "\n]"


def _tuple(name: str, values: Iterable[str]) -> str:
    return f"{name} = (" + "".join(f'\n    "{value}",' for value in values) + "\n)"


def imports_of(classes: Iterable[type]) -> str:
    """A room's imports of its classes, and their names among its public ones."""
    ordered = sorted(classes, key=lambda cls: cls.__module__)
    lines = [
        _import(f".{module.rpartition('.')[2]}", [cls.__name__ for cls in group])
        for module, group in groupby(ordered, key=lambda cls: cls.__module__)
    ]
    return "\n".join([*lines, "", _exported(cls.__name__ for cls in ordered)])


def losses() -> dict[str, tuple[str, list[str]]]:
    """Title and public names of each file of equations."""
    found = {}
    for path in sorted((ROOT / "robust_ensembles" / "losses").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        title = re.split("[:,]", ast.get_docstring(tree) or "", maxsplit=1)[0]
        names = [name for node in tree.body for name in _defined(node)]
        public = [name for name in names if not name.startswith("_") and not name.isupper()]
        found[path.stem] = (title, public)
    return found


def _defined(node: ast.stmt) -> list[str]:
    """Functions, classes and names of types that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def loss_imports() -> str:
    """The public face of the equations."""
    found = {module: names for module, (_, names) in losses().items()}
    lines = [_import(f".{module}", names) for module, names in found.items()]
    return "\n".join([*lines, "", _exported([n for names in found.values() for n in names], "=")])


def package_names() -> str:
    """The estimators as type checkers see them in the package, and their public names."""
    names = [method.cls.__name__ for method in _registry.methods().values()]
    return "\n".join(
        ["if TYPE_CHECKING:", _import(".estimators", names, "    "), "", _exported(names)]
    )


def choices() -> str:
    """What the command line lets choose, without importing the classes."""
    datasets = import_module("robust_ensembles.recipes").DATASETS
    return f"{_tuple('METHODS', _registry.methods())}\n{_tuple('DATASETS', datasets)}"


# ------------------------------------------------------------------------------------ pages


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def method_table() -> str:
    """Which class is for which paper."""
    rows = ((f"`{m.cls.__name__}`", m.paper, m.summary) for m in _registry.methods().values())
    return _table(("Class", "Paper", "What it does"), rows)


def attack_table() -> str:
    """Which class is which attack, and how scorers call it."""
    rows = (
        (f"`{a.cls.__name__}`", _scorer(a), a.summary + (f" ({a.paper})" if a.paper else ""))
        for a in _registry.attacks().values()
    )
    return _table(("Class", "Scorer name", "What it is"), rows)


def _scorer(attack: _registry.DeclaredAttack) -> str:
    """The name, and with the number that may stand behind it."""
    if attack.name is None:
        return ""
    if attack.count is None:
        return f"`{attack.name}`"
    return f"`{attack.name}`, `{attack.name}{getattr(attack.cls, attack.count)}`"


def toctree() -> str:
    """The pages of the methods."""
    return "\n".join(["```{toctree}", ":hidden:", "", *_registry.methods(), "```"])


def sections(
    groups: dict[str, str], members: Iterable[tuple[str, str]], more: dict[str, list[str]]
) -> str:
    """Parts of the API reference, with a table of classes in each."""
    found = list(members)
    lines: list[str] = []
    for group, title in groups.items():
        names = [name for name, of in found if of == group] + more.get(group, [])
        lines += [title, "-" * len(title), "", ".. autosummary::"]
        lines += ["   :toctree: generated/", "   :nosignatures:", ""]
        lines += [*(f"   {name}" for name in names), ""]
    return "\n".join(["", *lines])


def method_sections() -> str:
    """Estimators, family by family, and the object that CEAT's terms are given by."""
    members = ((m.cls.__name__, m.family) for m in _registry.methods().values())
    more = {"adversarial": ["CollaborativeCalibration"]}
    return sections(_registry.FAMILIES, members, more)


def attack_sections() -> str:
    """Attacks, kind by kind."""
    members = ((a.cls.__name__, a.kind) for a in _registry.attacks().values())
    return sections(_registry.KINDS, members, {})


def loss_sections() -> str:
    """Equations: what methods share, then method by method."""
    found = losses()
    order = [module for module in found if module not in _registry.methods()]
    order += [method for method in _registry.methods() if method in found]
    groups = {module: found[module][0] for module in order}
    members = [(name, module) for module, (_, names) in found.items() for name in names]
    return sections(groups, members, {})


# estimators cannot be imported before this one is right
FIRST: dict[tuple[str, str], Callable[[], str]] = {
    ("robust_ensembles/losses/__init__.py", "losses"): loss_imports,
}
LISTS: dict[tuple[str, str], Callable[[], str]] = {
    ("robust_ensembles/__init__.py", "methods"): package_names,
    ("robust_ensembles/estimators/__init__.py", "methods"): lambda: imports_of(
        m.cls for m in _registry.methods().values()
    ),
    ("robust_ensembles/attacks/__init__.py", "attacks"): lambda: imports_of(
        a.cls for a in _registry.attacks().values()
    ),
    ("robust_ensembles/_cli/arguments.py", "choices"): choices,
    ("README.md", "methods"): method_table,
    ("README.md", "attacks"): attack_table,
    ("docs/methods/index.md", "methods"): toctree,
    ("docs/api/ensembles.rst", "methods"): method_sections,
    ("docs/api/attacks.rst", "attacks"): attack_sections,
    ("docs/api/losses.rst", "losses"): loss_sections,
}
"""What writes each list, by file and name."""


def replace_list(text: str, name: str, content: str) -> str:
    """A file's text with another list in it.

    Parameters
    ----------
    text : str
    name : str
    content : str

    Returns
    -------
    text : str

    Raises
    ------
    ValueError
        If the two lines that mark the list are not there once each.
    """
    begin, end = (rf"^[^\n]*\b{name}: {mark}\b[^\n]*\n" for mark in ("begin", "end"))
    marks = re.compile(f"({begin})(.*?)({end})", re.MULTILINE | re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise ValueError(f"there must be one list between '{name}: begin' and '{name}: end'")
    return marks.sub(lambda found: f"{found[1]}{content}\n{found[3]}", text)


def stale() -> Iterator[tuple[Path, str]]:
    """Files whose lists are not what the declarations say, and what they should hold."""
    yield from _stale(FIRST)
    load_declarations()
    yield from _stale(LISTS)


def _stale(lists: dict[tuple[str, str], Callable[[], str]]) -> Iterator[tuple[Path, str]]:
    for file in sorted({file for file, _ in lists}):
        before = after = (ROOT / file).read_text(encoding="utf-8")
        for (of, name), write in lists.items():
            if of == file:
                after = replace_list(after, name, write())
        if after != before:
            yield ROOT / file, after


def main() -> None:
    """Write what is stale."""
    for path, text in stale():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
