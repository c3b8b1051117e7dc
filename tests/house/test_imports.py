"""What is loaded, and when: an import costs what is used of it."""

import ast
import inspect
import json
import pickle

import pytest
from fresh_process import ROOT, run_python

import robust_ensembles
from robust_ensembles import _registry, recipes

HEAVY = {"torch", "sklearn", "skorch", "pandas", "torchvision", "numpy", "scipy", "rich"}
# public rooms are those of the API reference
ROOMS = {path.stem for path in (ROOT / "docs" / "api").glob("*.rst")} - {"index", "ensembles"}


def loaded_by(code):
    """Modules that a new process has loaded at each call of `note` in some code."""
    head = "import json, sys\nseen = []\ndef note(): seen.append(list(sys.modules))\n"
    done = run_python("-c", f"{head}{code}\nprint(json.dumps(seen))")
    assert done.returncode == 0, done.stderr
    return [set(modules) for modules in json.loads(done.stdout.splitlines()[-1])]


def own(modules):
    return {name for name in modules if name.startswith("robust_ensembles.")}


def test_the_package_alone_loads_next_to_nothing():
    [modules] = loaded_by("import robust_ensembles\nrobust_ensembles.__version__\nnote()")
    assert modules & HEAVY == set()
    assert own(modules) == {"robust_ensembles._version"}


COMMANDS = {
    "--help": 0,
    "--version": 0,
    "train --help": 0,
    "evaluate --help": 0,
    "report --help": 0,
    "recipes --help": 0,
    "": 2,
    "train": 2,
    "train digits --method nonsense -o m": 2,
    "evaluate m digits --eps nonsense": 2,
}


def test_help_and_errors_in_arguments_come_without_torch():
    code = (
        "from robust_ensembles.__main__ import main\n"
        f"for line, status in {COMMANDS}.items():\n"
        "    try:\n        main(line.split())\n"
        "    except SystemExit as end:\n        assert end.code == status, line\n"
        "    note()"
    )
    for line, modules in zip(COMMANDS, loaded_by(code), strict=True):
        assert modules & HEAVY == set(), line


def test_rooms_load_lazily_and_only_what_is_used():
    """A pickle in a process that has loaded none of ours, an estimator, then each room.

    scikit-learn itself imports pandas where it is installed, and skorch the searches.
    """
    pickled = pickle.dumps(robust_ensembles.GALEnsembleClassifier(lam=0.25))
    code = (
        f"import pickle, skorch\nnote()\nassert pickle.loads({pickled!r}).lam == 0.25\nnote()\n"
        "from robust_ensembles import CEATEnsembleClassifier\nnote()\nimport robust_ensembles\n"
        f"for room in {sorted(ROOMS)}:\n"
        "    vars(robust_ensembles).pop(room, None)  # else a loaded one would be found\n"
        "    name = getattr(robust_ensembles, room).__name__\n"
        "    assert name == f'robust_ensembles.{room}'\nnote()"
    )
    skorch_alone, unpickled, estimator, rooms = loaded_by(code)
    assert own(skorch_alone) == set()
    assert "robust_ensembles.estimators.gal" in unpickled
    assert "torchvision" not in estimator
    unused = [
        "_cli",
        "datasets",
        "inspection",
        "metrics",
        "parallel",
        "persistence",
        "protocols",
        "recipes",
    ]
    assert {name.split(".")[1] for name in own(estimator)} & set(unused) == set()
    assert {"pandas", "sklearn.model_selection"} & estimator <= skorch_alone
    assert {f"robust_ensembles.{room}" for room in ROOMS} <= rooms


def test_choices_of_the_command_line():
    from robust_ensembles._cli.arguments import DATASETS, METHODS

    assert list(METHODS) == list(recipes.METHODS)
    assert DATASETS == recipes.DATASETS


def test_names_of_the_package():
    methods = {method.cls.__name__ for method in _registry.methods().values()}
    assert set(robust_ensembles.__all__) == methods | {"CollaborativeCalibration", "__version__"}
    assert set(robust_ensembles.__all__) | ROOMS <= set(dir(robust_ensembles))
    assert set(robust_ensembles._ROOMS) == ROOMS
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = robust_ensembles.Nonsense
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        from robust_ensembles import Nonsense  # noqa: F401


def test_type_checkers_see_what_can_be_imported():
    """What stands under `if TYPE_CHECKING` is what `__getattr__` gives, and no other name."""
    tree = ast.parse(inspect.getsource(robust_ensembles))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for block in blocks for statement in block.body for alias in statement.names}
    assert seen == ROOMS | set(robust_ensembles.__all__) - {"__version__"}
    # a `__getattr__` that they saw would let every misspelled name pass
    assert "__getattr__" not in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("name", sorted(set(robust_ensembles.__all__) - {"__version__"}))
def test_a_class_is_one_object_wherever_it_is_asked_for(name):
    cls = getattr(robust_ensembles, name)
    assert cls is getattr(robust_ensembles.estimators, name)
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_everything_is_imported_by_a_star():
    names = {}
    exec("from robust_ensembles import *", names)
    assert {name: names[name] for name in robust_ensembles.__all__} == {
        name: getattr(robust_ensembles, name) for name in robust_ensembles.__all__
    }
