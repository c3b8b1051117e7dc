"""What is loaded, and when: an import costs what is used of it."""

import ast
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import robust_ensembles
from robust_ensembles import _registry, recipes

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "sklearn", "skorch", "pandas", "torchvision", "numpy", "scipy", "rich"}
# public rooms are those of the API reference
ROOMS = {path.stem for path in (ROOT / "docs" / "api").glob("*.rst")} - {"index", "ensembles"}


def python(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def loaded_by(code):
    """Modules that a new process has loaded after some code."""
    done = python(f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def own(modules):
    return {name for name in modules if name.startswith("robust_ensembles.")}


def test_the_package_alone_loads_next_to_nothing():
    modules = loaded_by("import robust_ensembles\nrobust_ensembles.__version__")
    assert modules & HEAVY == set()
    assert own(modules) == {"robust_ensembles._version"}


def test_an_estimator_loads_neither_searches_nor_data_frames_of_ours():
    """scikit-learn itself imports pandas where it is installed, and skorch the searches."""
    modules = loaded_by("from robust_ensembles import CEATEnsembleClassifier")
    assert "torchvision" not in modules
    assert {name.split(".")[1] for name in own(modules)} & {
        "_cli",
        "datasets",
        "inspection",
        "metrics",
        "parallel",
        "persistence",
        "protocols",
        "recipes",
    } == set()
    skorch_alone = loaded_by("import skorch")
    assert {"pandas", "sklearn.model_selection"} & modules <= skorch_alone


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_load_lazily(room):
    code = f"import robust_ensembles\nassert robust_ensembles.{room}.__name__"
    assert f"robust_ensembles.{room}" in loaded_by(code)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["report", "--help"], 0),
        (["recipes", "--help"], 0),
        ([], 2),
        (["train"], 2),
        (["train", "digits", "--method", "nonsense", "-o", "m"], 2),
        (["evaluate", "m", "digits", "--eps", "nonsense"], 2),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)
def test_help_and_errors_in_arguments_come_without_torch(arguments, status):
    code = (
        "import sys\nfrom robust_ensembles.__main__ import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert end.code == {status}"
    )
    assert loaded_by(code) & HEAVY == set()


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


def test_a_pickle_loads_in_a_process_that_has_loaded_nothing():
    estimator = robust_ensembles.GALEnsembleClassifier(lam=0.25)
    code = f"import pickle\nassert pickle.loads({pickle.dumps(estimator)!r}).lam == 0.25"
    assert "robust_ensembles.estimators.gal" in loaded_by(code)


def test_everything_is_imported_by_a_star():
    assert "robust_ensembles.estimators.gal" in loaded_by(
        "from robust_ensembles import *\nassert GALEnsembleClassifier and __version__"
    )
