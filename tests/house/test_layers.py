"""Which room of the package may import which: imports go one way, and no two files in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "robust_ensembles"

# what everyone may import
GROUND = {
    "_checks",
    "_docstrings",
    "_parameters",
    "_plain",
    "_registry",
    "_strategy",
    "_system",
    "_version",
    "exceptions",
}

# room: the other rooms that its files may import
ALLOWED: dict[str, set[str]] = {
    "losses": set(),
    "modules": {"losses"},
    "twins": set(),
    "attacks": {"losses", "modules", "twins"},
    "datasets": set(),
    "distributed": {"modules"},
    "speed": {"modules"},
    "state": set(),
    "training": {"attacks", "losses", "modules", "speed", "state"},
    "contrib": {"attacks", "modules", "training"},
    "estimators": {"attacks", "losses", "modules", "training"},
    "persistence": {"attacks", "estimators", "modules", "state", "training"},
    "metrics": {"attacks"},
    "inspection": {"attacks", "losses", "metrics", "modules", "twins"},
    "protocols": {"attacks", "estimators"},
    "recipes": {"attacks", "estimators", "training"},
    "parallel": {"distributed", "estimators"},
    "_cli": {
        "attacks",
        "datasets",
        "estimators",
        "inspection",
        "metrics",
        "persistence",
        "recipes",
        "state",
    },
}

# (file, room): imports that go the other way, inside a function, and why
EXCEPTIONS = {
    ("estimators/base.py", "persistence"): "clf.save and checkpoints describe an estimator",
}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]


def module_name(file: Path) -> str:
    parts = [PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports(source: str, module: str, *, is_folder: bool) -> Iterator[tuple[str, str, ast.stmt]]:
    """Module, name and statement of each import of the package's own."""
    package = module.split(".") if is_folder else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        target = ".".join([*base, *([node.module] if node.module else [])])
        if target.split(".")[0] == PACKAGE.name:
            for alias in node.names:
                yield target, alias.name, node


def imports_of(file: Path) -> list[tuple[str, str, ast.stmt]]:
    found = imports(file.read_text(), module_name(file), is_folder=file.name == "__init__.py")
    return list(found)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def room_of(module: str) -> str:
    """The folder or file right below the package that a module lies in."""
    return module.split(".")[1] if "." in module else ""


def wrong_rooms(room: str, imported: list[tuple[str, str, ast.stmt]]) -> set[str]:
    """Rooms that a file imports, and may not."""
    full = [f"{target}.{name}" if room_of(target) == "" else target for target, name, _ in imported]
    return {room_of(one) for one in full} - ALLOWED[room] - GROUND - {room, "__version__"}


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name])
def test_a_file_imports_from_rooms_below_it_only(name):
    room = name.split("/")[0]
    excused = {to for (file, to) in EXCEPTIONS if file == name}
    assert wrong_rooms(room, imports_of(PACKAGE / name)) <= excused


def test_every_room_has_a_rule():
    rooms = {name.split("/")[0] for name in NAMES if "/" in name}
    assert rooms == set(ALLOWED)


def test_the_rule_sees_what_is_forbidden():
    source = (
        "from ..estimators import BaseEnsembleClassifier\ndef f():\n    from .. import metrics\n"
    )
    found = list(imports(source, "robust_ensembles.losses.adp", is_folder=False))
    assert wrong_rooms("losses", found) == {"estimators", "metrics"}


@pytest.mark.parametrize("name", NAMES)
def test_no_file_takes_private_names_of_another_room(name):
    own = name.split("/")[0] if "/" in name else ""
    private = [
        f"{target}: {imported}"
        for target, imported, _ in imports_of(PACKAGE / name)
        if room_of(target) not in (own, "")
        and (is_private(imported) or any(is_private(p) for p in target.split(".")[2:]))
    ]
    assert private == []


def private_parts_of_torch(source: str) -> set[str]:
    """Such as ``torch.ops`` and ``torch._C``: kernels that torch promises nothing of."""
    return {
        f"torch.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        and (node.attr == "ops" or is_private(node.attr))
    }


def test_private_kernels_of_torch_are_called_through_one_file():
    """But for parts that may leave again."""
    found = {
        name
        for name, file in zip(NAMES, FILES, strict=True)
        if not name.startswith("contrib/") and private_parts_of_torch(file.read_text())
    }
    assert found == {"speed/aten.py"}


def at_import(file: Path) -> set[str]:
    """Modules of the package that a file needs before its own first line is run."""
    tree = ast.parse(file.read_text())
    top = {id(node) for node in tree.body}
    found = set()
    source, module = file.read_text(), module_name(file)
    nodes = imports(source, module, is_folder=file.name == "__init__.py")
    lines = {node.lineno for node in tree.body if id(node) in top}
    for target, name, node in nodes:
        if node.lineno in lines and isinstance(node, ast.ImportFrom) and node.col_offset == 0:
            full = f"{target}.{name}"
            found.add(full if full in MODULES else target)
    return found & set(MODULES)


def test_no_two_files_import_each_other():
    needs = {module: at_import(file) - {module} for module, file in MODULES.items()}
    # a folder's public face imports its files; its files never import the face
    circles, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in sorted(needs[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in needs:
        visit(module, [])
    assert circles == []
