"""Attacks, given anything, return adversarial examples or say what is wrong."""

import dataclasses
import functools

import numpy as np
import strange
import torch
from endings import content, ends_well
from hypothesis import strategies as st
from small import fitted, images, rows

from robust_ensembles import attacks
from robust_ensembles.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    EnsembleAutoAttack,
    External,
    MinimumNormAttack,
    Square,
    Transfer,
    UniformNoise,
    WorstCase,
)


def identity(module, x, y):
    """An attack of somebody else's that does nothing."""
    return x


def _nothing(module, x, y):
    """An attack of somebody else's that returns nothing."""


# a few steps of each
_SHORT = {"n_steps": 3, "n_queries": 5, "n_searches": 2, "n_draws": 2}
_NEEDED = {
    External: {"function": identity},
    WorstCase: {"attacks": [FGSM(eps=0.1), UniformNoise(eps=0.1, n_draws=1)]},
}
KINDS = [
    kind
    for name in attacks.__all__
    if isinstance(kind := getattr(attacks, name), type)
    and issubclass(kind, attacks.Attack)
    and not kind.__abstractmethods__
]


def short(kind, **params):
    """An attack of a few steps, with the given parameters if it has them."""
    names = {field.name for field in dataclasses.fields(kind)}
    if kind is Transfer:
        return Transfer(fitted("other"), PGD(**{"n_steps": 2, **params}))
    settings = {n: v for n, v in {**_SHORT, **params}.items() if n in names}
    return kind(**{**_NEEDED.get(kind, {}), **settings})


@functools.cache
def module():
    """Logits of two members on rows of four features."""
    return fitted().as_module()


def check_examples(attack, made, X, box, stop=True):
    """Same shape and type, finite, in the ball and in the box.

    Without `stop`, attacks that look for the nearest example leave the ball on purpose.
    """
    assert made.shape == X.shape
    assert made.dtype == X.dtype
    assert made.device == X.device
    assert not made.requires_grad
    assert made.isfinite().all()
    bounds = attack.attack if isinstance(attack, Transfer) else attack
    if isinstance(attack, WorstCase):
        bounds = attack.attacks[0]
    if not len(X):
        return
    inside = X.detach().clamp(*box).double() if box is not None else X.detach().double()
    delta = (made.double() - inside).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[bounds.norm]
    if stop or not isinstance(attack, MinimumNormAttack):
        # what two roundings of a sum do to the norm, in float64
        assert (delta.norm(p=order, dim=1) <= bounds.eps * (1 + 1e-12)).all()
    if box is not None:
        low, high = torch.tensor(box, dtype=made.dtype)
        assert (made >= low).all()
        assert (made <= high).all()


def state(module):
    """All that an attack must not change."""
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    return tensors, modes, [p.requires_grad for p in module.parameters()]


def same_state(first, second):
    return first[1:] == second[1:] and all(torch.equal(first[0][n], second[0][n]) for n in first[0])


@st.composite
def tensors(draw, shapes=strange.ROWS):
    """Tensors, mostly of the right shape; at times no tensor."""
    X = draw(strange.inputs(shapes))
    if draw(st.integers(0, 9)):
        X = strange._tensor(X) if isinstance(X, np.ndarray) else X
        real = isinstance(X, torch.Tensor) and not X.is_complex()
        if real and draw(st.integers(0, 3)):
            X = X.float() if draw(st.booleans()) else X.double()
    return X


@st.composite
def targets(draw, n):
    """Class indices as a tensor, or something else."""
    if draw(st.integers(0, 3)):
        dtype = draw(st.sampled_from([torch.int64] * 5 + [torch.int32, torch.uint8, torch.bool]))
        off = draw(st.sampled_from([0] * 8 + [-1, 1]))
        high = draw(st.sampled_from([3] * 6 + [4, 2**40]))
        random = np.random.default_rng(draw(st.integers(0, 9)))
        y = torch.as_tensor(random.integers(0, high, max(n + off, 0)))
        return -y if draw(st.integers(0, 9)) == 0 else y.to(dtype)
    return draw(st.one_of(strange.labels(n), strange.anything()))


BOXES = st.sampled_from([None, None, (0.0, 1.0), (-1.0, 300.0), (-4e38, 4e38), (0.25, 0.75)])
SIZES = st.sampled_from([0.1, 0.1, 0.0, 1e-8, 1e-45, 8 / 255, 3.0, 1e5, 1e30, 1e39, 1e300])
NORMS = st.sampled_from(["linf", "l2", "l1"])


@st.composite
def attacked(draw):
    X = draw(tensors())
    return X, draw(targets(strange.size_of(X)))


def test_attacks_on_tensors(explore):
    def check(data, kind, eps, box, norm, targeted, stop):
        X, y = data
        box = None if kind is WorstCase else box  # which leaves it to its attacks
        attack = short(kind, eps=eps, norm=norm, clip_values=box, targeted=targeted)
        before, inputs = state(module()), (content(X), content(y))
        ended = ends_well(attack, module(), X, y, stop_when_broken=stop)
        assert same_state(before, state(module()))
        assert (content(X), content(y)) == inputs
        if ended:
            check_examples(attack, ended.value, X, box, stop)

    explore(
        check,
        data=attacked(),
        kind=st.sampled_from(KINDS),
        eps=SIZES,
        box=BOXES,
        norm=NORMS,
        targeted=st.sampled_from([False, False, False, True]),
        stop=st.booleans(),
    )


@st.composite
def generated(draw):
    kind = draw(st.sampled_from(["rows", "images", "strings"]))
    X = draw(strange.inputs(strange.IMAGES if kind == "images" else strange.ROWS))
    n = strange.size_of(X)
    known = st.just(
        (np.array(["a", "b", "c"]) if kind == "strings" else np.arange(3))[np.arange(n) % 3]
    )
    return kind, X, draw(st.one_of(known, known, strange.labels(n)))


def test_attacks_generate(explore):
    def check(data, attack, eps):
        kind, X, y = data
        estimator, attack = fitted(kind), short(attack, eps=eps)
        before, inputs = state(estimator.module_), (content(X), content(y))
        ended = ends_well(attack.generate, estimator, X, y)
        assert same_state(before, state(estimator.module_))
        assert (content(X), content(y)) == inputs
        if not ended:
            return
        made = ended.value
        assert isinstance(made, np.ndarray)
        assert made.shape == np.shape(X)
        assert np.isfinite(made).all()
        X = X.detach() if isinstance(X, torch.Tensor) else X
        raw = torch.as_tensor(np.asarray(X).astype(made.dtype))
        if np.asarray(X).dtype == np.uint8:
            raw = raw / 255
        check_examples(attack, torch.from_numpy(made), raw, estimator.clip_values_)

    explore(check, data=generated(), attack=st.sampled_from(KINDS), eps=SIZES)


# what may take hours or gigabytes if it is taken at its word
_EXPENSIVE = {
    "n_steps",
    "n_queries",
    "n_searches",
    "n_draws",
    "n_restarts",
    "n_target_classes",
    "n_gradients",
}


@st.composite
def odd_parameters(draw):
    kind = draw(st.sampled_from(KINDS))
    return (
        kind,
        draw(st.sampled_from([f.name for f in dataclasses.fields(kind)])),
        draw(strange.NONSENSE),
    )


def test_attack_parameters(explore):
    x, y = (torch.as_tensor(part) for part in rows())

    def check(case, generate):
        kind, name, value = case
        if name in _EXPENSIVE and isinstance(value, (int, np.integer)) and value > 3:
            value = 2
        if name == "function" and callable(value):
            value = _nothing  # what foreign functions raise is their own
        attack = short(kind).set_params(**{name: value})
        repr(attack)
        before = state(module())
        if generate:
            ended = ends_well(attack.generate, fitted(), *rows())
        else:
            ended = ends_well(attack, module(), x, y)
        assert same_state(before, state(module()))
        if not ended:
            assert name == "surrogate" or name in str(ended.error), ended.error
            return
        made = torch.as_tensor(ended.value)
        assert made.shape == x.shape
        assert made.isfinite().all()

    explore(check, case=odd_parameters(), generate=st.booleans())


def test_all_attacks_are_here():
    assert {APGD, FAB, Square, AutoAttack, EnsembleAutoAttack, CarliniWagnerL2} < set(KINDS)
    assert images()[0].shape[1:] == (1, 4, 4)
