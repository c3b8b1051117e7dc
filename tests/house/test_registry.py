"""What is declared once, and what follows from it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from robust_ensembles import VanillaEnsembleClassifier, _registry, estimators, recipes
from robust_ensembles import attacks as attacks_room
from robust_ensembles._registry import Technique
from robust_ensembles.attacks import FGSM, MORA, PGD, Attack, External, Transfer
from robust_ensembles.inspection.report import cost
from robust_ensembles.metrics import attack_from_name
from robust_ensembles.persistence.values import OBJECTS, encode
from robust_ensembles.state.values import NotStorableError
from robust_ensembles.training import TECHNIQUES, resolve_acceleration

ROOT = Path(__file__).parents[2]
METHODS = _registry.methods()
ATTACKS = _registry.attacks()


@pytest.fixture(scope="module")
def lists():
    """docs/lists.py as a module."""
    spec = importlib.util.spec_from_file_location("lists", ROOT / "docs" / "lists.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def undeclared():
    """Declarations of a test are taken back."""
    before = dict(_registry._METHODS), dict(_registry._ATTACKS)
    yield
    for declared, kept in zip((_registry._METHODS, _registry._ATTACKS), before, strict=True):
        declared.clear()
        declared.update(kept)


def ours(cls):
    """As if a class of a test stood in the package."""
    cls.__module__ = "robust_ensembles.attacks.exercise"
    return cls


# ---------------------------------------------------------------- lists in files


def test_lists_are_those_of_the_declarations(lists):
    assert [str(path.relative_to(ROOT)) for path, _ in lists.stale()] == [], "run `make lists`"


def test_a_new_attack_is_in_every_list(lists, undeclared):
    before = {key: write() for key, write in lists.LISTS.items()}

    @_registry.attack("exercise", kind="gradients", summary="an exercise", count="n_steps")
    @ours
    class Exercise(PGD):
        pass

    changed = {file for (file, name), write in lists.LISTS.items() if write() != before[file, name]}
    assert changed == {"robust_ensembles/attacks/__init__.py", "README.md", "docs/api/attacks.rst"}
    assert "from .exercise import Exercise" in lists.imports_of([Exercise])
    assert "| `Exercise` | `exercise`, `exercise20` | an exercise |" in lists.attack_table()
    assert type(attack_from_name("exercise7")) is Exercise
    assert attack_from_name("exercise7").n_steps == cost(attack_from_name("exercise7")) == 7


def test_a_list_without_its_marks(lists):
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert lists.replace_list(text, "x", "new") == text.replace("old", "new")
    for broken in (text.replace("x: end", "x"), text + text, ""):
        with pytest.raises(ValueError, match="there must be one list between 'x: begin'"):
            lists.replace_list(broken, "x", "new")


# ---------------------------------------------------------------- what follows


def test_every_concrete_class_of_the_rooms_is_declared():
    """Concrete, public, and no base of another one."""

    def leaves(room, base):
        kinds = [getattr(room, name) for name in room.__all__]
        kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, base)]
        return {kind for kind in kinds if not kind.__abstractmethods__}

    declared = {attack.cls for attack in ATTACKS.values()}
    # the base of PGD can be used as it is
    assert leaves(attacks_room, Attack) - {attacks_room.GradientAttack} == declared
    assert leaves(estimators, estimators.BaseEnsembleClassifier) == {
        method.cls for method in METHODS.values()
    }


def test_declarations_say_something_true_of_their_classes():
    for attack in ATTACKS.values():
        params = attack.cls._get_param_names()
        assert {*attack.cost, *([attack.count] if attack.count else [])} <= set(params), attack
        assert attack.summary
    for method in METHODS.values():
        assert method.cls.__module__ == f"robust_ensembles.estimators.{method.name}"
        assert method.summary


@pytest.mark.parametrize("name", _registry.named_attacks())
def test_a_scorer_by_the_name_of_each_attack(name):
    declared = _registry.named_attacks()[name]
    assert type(attack_from_name(name)) is declared.cls
    if declared.count is not None:
        assert getattr(attack_from_name(f"{name}7"), declared.count) == 7


def test_order_is_that_of_families_and_years():
    assert list(METHODS)[:4] == ["vanilla", "adversarial", "adp", "gal"]
    assert list(METHODS)[-1] == "ceat"
    assert list(recipes.METHODS) == list(METHODS)
    families = [method.family for method in METHODS.values()]
    assert list(dict.fromkeys(families)) == list(_registry.FAMILIES)
    kinds = [attack.kind for attack in ATTACKS.values()]
    assert list(dict.fromkeys(kinds)) == list(_registry.KINDS)
    gradients = [name for name, attack in ATTACKS.items() if attack.kind == "gradients"]
    assert (gradients[0], gradients[-1]) == ("FGSM", "MORA")


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (None, 1),
        (FGSM(), 1),
        (PGD(n_steps=3, n_restarts=5), 15),
        (MORA(n_steps=10, shares=(0.5, 1.0)), 20),
        (External(function=len), 1),
        (attacks_room.WorstCase([PGD(), FGSM()]), 21),
        (Transfer(None, [PGD(n_steps=4), PGD(n_steps=5)]), 9),
    ],
    ids=repr,
)
def test_cost(attack, expected):
    assert cost(attack) == expected


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_page_says_what_auto_takes(technique):
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith(f"| `{technique}` |")]
    for device, said in zip(("cpu", "cuda"), row.strip("| ").split(" | ")[-2:], strict=True):
        taken = resolve_acceleration("auto", torch.device(device), second_order=True)
        assert (technique in taken) == (not said.startswith("no")), (device, said)


def test_a_technique_of_second_order():
    technique = Technique("x", auto=("cpu",), second_order_only=True)
    assert technique.is_automatic("cpu", second_order=True)
    assert not technique.is_automatic("cpu", second_order=False)
    assert not technique.is_automatic("cuda", second_order=True)


# ---------------------------------------------------------------- classes of users


@dataclass(kw_only=True, repr=False, eq=False)
class Own(PGD):
    """A user's attack, which derives from ours."""

    n_looks: int = 3


class Odd(Attack):
    """A user's attack, which derives from none that is declared."""

    n_steps = 50

    def __call__(self, module, X, y, *, stop_when_broken=True):
        return X

    def _validate(self):
        pass


def test_a_users_attack_works_and_stays_out_of_files():
    assert "Own" not in OBJECTS
    assert {attack.cls for attack in ATTACKS.values()}.isdisjoint({Own, Odd})
    with pytest.raises(NotStorableError, match="Own"):
        encode(Own())
    assert cost(Own(n_steps=4, n_restarts=2)) == 8
    assert cost(Odd()) == 50
    with pytest.raises(ValueError, match=r"is no name of|must be one of"):
        attack_from_name("own")


def test_classes_of_users_are_not_declared(undeclared):
    with pytest.raises(ValueError, match=r"not of robust_ensembles.*need no declaration"):
        _registry.attack("own", kind="gradients", summary="x")(Own)
    with pytest.raises(ValueError, match="need no declaration"):
        _registry.method("own", family="baseline", summary="x")(
            type("Own", (VanillaEnsembleClassifier,), {"__module__": __name__})
        )
    assert _registry.attacks() == ATTACKS
    assert _registry.methods() == METHODS


def test_a_name_is_given_once(undeclared):
    other = ours(type("Other", (PGD,), {}))
    with pytest.raises(ValueError, match=r"Other cannot be declared under the name 'pgd'.*PGD is"):
        _registry.attack("pgd", kind="gradients", summary="x")(other)
    with pytest.raises(ValueError, match=r"under the name 'gal'.*GALEnsembleClassifier is"):
        _registry.method("gal", family="gradients", summary="x")(other)
    with pytest.raises(ValueError, match=r"cannot be declared.*FGSM is"):
        _registry.attack("another", kind="gradients", summary="x")(ours(type("FGSM", (PGD,), {})))
    again = _registry.attack("pgd", kind="gradients", summary="x")(PGD)  # loaded again
    assert again is PGD


def test_families_and_kinds_are_known():
    with pytest.raises(ValueError, match=r"x: family must be one of .*got 'gradient'"):
        _registry.method("x", family="gradient", summary="x")
    with pytest.raises(ValueError, match=r"x: kind must be one of .*got 'gradient'"):
        _registry.attack("x", kind="gradient", summary="x")
