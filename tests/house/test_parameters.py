"""Parameters on one line, and docstrings that describe all of them."""

import inspect
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import Interval, StrOptions

import robust_ensembles
from robust_ensembles import CEATEnsembleClassifier, GALEnsembleClassifier, attacks, estimators
from robust_ensembles._parameters import (
    above,
    at_least,
    between,
    check_parameters,
    choice,
    count,
    declared,
    flag,
    param,
)
from robust_ensembles.attacks import BIM, PGD, Attack

CLASSES = [
    *(
        c
        for name in estimators.__all__
        if issubclass(c := getattr(estimators, name), BaseEstimator)
    ),
    *(
        c
        for name in attacks.__all__
        if isinstance(c := getattr(attacks, name), type)
        and issubclass(c, Attack)
        and c is not Attack
    ),
]
ENSEMBLES = [c for c in CLASSES if issubclass(c, estimators.BaseEnsembleClassifier)]


def described(cls):
    """Headers of the entries of a docstring's parameters, and their texts, by name."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", cls.__doc__, re.M | re.S)
    entries = re.split(r"^(?=\S)", section[1], flags=re.M) if section else []
    found = {}
    for entry in filter(str.strip, entries):
        header, _, text = entry.partition("\n")
        for name in header.partition(" : ")[0].split(", "):
            assert name not in found, f"{name} is described twice"
            found[name] = header.partition(" : ")[2], text
    return found


@pytest.mark.parametrize("cls", CLASSES)
def test_help_describes_every_parameter(cls):
    parameters = inspect.signature(cls).parameters
    entries = described(cls)
    assert set(entries) == set(parameters)
    for name, (kind, text) in entries.items():
        assert kind
        assert text.strip(), name
    assert "See `EnsembleParameters`" not in cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_described_defaults_are_those_of_the_signature(cls):
    for name, parameter in inspect.signature(cls).parameters.items():
        kind = described(cls)[name][0]
        if parameter.default is inspect.Parameter.empty:
            assert "default" not in kind
            continue
        said = kind.partition("default=")[2]
        assert eval(said, {"__builtins__": {}}) == parameter.default, name


def test_what_is_a_class_s_own_comes_first():
    assert (
        list(described(GALEnsembleClassifier))[:3]
        == list(GALEnsembleClassifier.__annotations__)[:3]
    )
    assert list(described(PGD))[:4] == ["n_steps", "step_size", "n_restarts", "random_start"]


def test_sections_stand_in_the_order_of_numpydoc():
    order = ["Parameters", "Attributes", "See Also", "Notes", "References", "Examples"]
    for cls in CLASSES:
        found = re.findall(r"^(\S[^\n]*)\n-{3,}$", cls.__doc__, re.M)
        assert found == [name for name in order if name in found], cls


def test_a_chain_has_at_most_five_classes_of_our_own():
    for cls in ENSEMBLES:
        own = [c.__name__ for c in cls.__mro__ if c.__module__.startswith("robust_ensembles.")]
        assert len(own) <= 5, own


@declared
class Root(BaseEstimator):
    def __init_subclass__(cls):
        super().__init_subclass__()
        declared(cls)


@dataclass(kw_only=True, repr=False, eq=False)
class Parent(Root):
    """One with parameters.

    Parameters
    ----------
    x, y : float, default=1.0 and 2.0
        Two numbers.
    kind : {"a", "b"}, default="a"
        A word.
    """

    x: float = param(1.0, at_least(0))
    y: float = param(2.0, above(0), None)
    kind: str = param("a", choice("a", "b"))


@dataclass(kw_only=True, repr=False, eq=False)
class Child(Parent):
    """One that inherits them.

    Parameters
    ----------
    z : int, default=1
        A number.
    x : float, default=3.0
        Another one.

    Notes
    -----
    Something.
    """

    z: int = param(1, count(), flag())
    x: float = 3.0
    kind: str = param("b", choice("b", "c"))


@dataclass(kw_only=True, repr=False, eq=False)
class Grandchild(Child):
    """One without `kind`."""

    kind: ClassVar[None] = None


def test_ranges_are_collected_along_the_bases():
    constraints = Child._parameter_constraints
    assert list(constraints) == ["x", "y", "kind", "z"]
    assert constraints["x"] == Parent._parameter_constraints["x"]  # a new default, the same range
    assert isinstance(constraints["x"][0], Interval)
    assert constraints["y"][1] is None
    assert isinstance(constraints["kind"][0], StrOptions)
    assert constraints["kind"][0].options == {"b", "c"}
    assert constraints["z"][1] == "boolean"
    assert Parent._parameter_constraints["kind"][0].options == {"a", "b"}
    assert set(Grandchild._parameter_constraints) == {"x", "y", "z"}


def test_entries_are_collected_along_the_bases():
    assert list(described(Child)) == ["z", "x", "y", "kind"]
    assert described(Child)["x"][1].strip() == "Another one."
    assert described(Child)["y"] == ("float, default=2.0", "    Two numbers.\n")
    assert described(Child)["kind"][0] == '{"a", "b"}, default="b"'
    assert Child.__doc__.endswith("Notes\n-----\nSomething.\n")
    assert list(described(Grandchild)) == ["z", "x", "y"]
    assert Grandchild.__doc__.startswith("One without `kind`.\n\nParameters\n----------\nz : int")


def test_python_without_docstrings():
    """As ``python -OO`` makes classes (skorch itself cannot be imported there)."""
    source = "".join(inspect.getsource(cls) for cls in (Parent, Child, Grandchild))
    names = dict(globals())
    exec(compile(source, "classes", "exec", optimize=2), names)
    assert names["Child"] is not Child
    assert "numbers" not in names["Child"].__doc__  # a signature, by dataclass
    assert repr(names["Child"](z=2)) == "Child(z=2)"
    assert set(names["Grandchild"]._parameter_constraints) == {"x", "y", "z"}


def test_what_two_bases_describe_is_described_once():
    @dataclass(kw_only=True, repr=False, eq=False)
    class Side(Root):
        """Another one.

        Parameters
        ----------
        x : float, default=9.0
            Of the side.
        w : float, default=9.0
            Of the side, too.
        """

        x: float = param(9.0, above(8))
        w: float = param(9.0, above(8))

    @dataclass(kw_only=True, repr=False, eq=False)
    class Both(Child, Side):
        """Of both."""

    assert list(described(Both)) == ["z", "x", "y", "kind", "w"]  # raises if one comes twice
    assert described(Both)["x"] == ("float, default=3.0", "    Another one.\n")
    assert Both._parameter_constraints["x"][0].left == 0


def test_signature_and_clone_see_plain_defaults():
    assert str(inspect.signature(Grandchild)).count("=") == 3
    assert Child().get_params() == {"kind": "b", "x": 3.0, "y": 2.0, "z": 1}
    assert clone(Child(z=2)).z == 2


def test_constraints_in_scikit_learns_way_are_kept():
    class Own(GALEnsembleClassifier):
        _parameter_constraints: ClassVar[dict] = {"lam": ["boolean"]}

    assert Own._parameter_constraints["lam"] == ["boolean"]
    assert Own._parameter_constraints["lr"] == GALEnsembleClassifier._parameter_constraints["lr"]


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "message"),
    [
        (at_least(1), [1, 2.5, np.float32(1)], [0.9, "1", True], "a finite number >= 1, below 2"),
        (at_least(0, unit=" metres"), [0], [-1], r"below 2\*\*63 metres; got -1"),
        (above(0), [0.1], [0, -1, float("nan"), float("inf")], "must be positive; got"),
        (above(1), [1.1], [1], "must be above 1; got 1"),
        (between(0, 1), [0, 1], [-0.1, 1.1], "a finite number from 0 to 1; got"),
        (between(0, 1, "right"), [1], [0, 2], "above 0 and at most 1; got"),
        (between(0, 1, "left"), [0], [1, -1], "at least 0 and below 1; got"),
        (between(0, 1, "neither"), [0.5], [0, 1], "above 0 and below 1; got"),
        (count(), [1, np.int64(3)], [0, -1], "must be at least 1; got"),
        (count(2), [2], [1.5, "x", True], "a whole number, at least 2; got"),
        (choice("up", "down"), ["up"], ["ups", "u"], "one of .* Did you mean 'up'"),
        (flag(), [True, np.bool_(False)], [0, None], "must be True or False; got"),
    ],
)
def test_words(allowed, good, bad, message):
    """Our check and scikit-learn's constraint agree, but for what is too large for a number."""
    for value in good:
        allowed.check(value, "it")
    for value in bad:
        with pytest.raises(ValueError, match=f"^it must be .*{message.removeprefix('must be ')}"):
            allowed.check(value, "it")


def test_none_is_named_where_it_is_allowed():
    @dataclass
    class Owner(Root):
        x: float = param(1.0, above(0), None)

    check_parameters(Owner(None))
    with pytest.raises(ValueError, match=r"^Owner: x must be positive or None; got -1$"):
        check_parameters(Owner(-1))


def test_every_parameter_of_an_estimator_has_a_range():
    for cls in ENSEMBLES:
        if not inspect.isabstract(cls):
            assert set(cls()._parameter_constraints) == set(cls().get_params(deep=False))


def test_a_default_attack_is_not_changed_through_an_estimator():
    first = CEATEnsembleClassifier().set_params(attack__eps=0.5)
    assert first.attack.eps == 0.5
    assert CEATEnsembleClassifier.default_attack.eps == 8 / 255
    with pytest.raises(ValueError, match="Invalid parameter 'calibration'"):
        CEATEnsembleClassifier().set_params(calibration__lam=1.0)


def test_defaults_of_a_subclass_are_in_its_help():
    assert described(BIM)["n_steps"][0] == "int, default=10"
    assert described(PGD)["n_steps"][0] == "int, default=20"
    assert "n_steps" in robust_ensembles.attacks.FGSM.__doc__
