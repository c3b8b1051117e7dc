"""Bad input ends in an error that says what to do."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_models import ensemble, labelled

from robust_ensembles.attacks import (
    APGD,
    BIM,
    CW,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    AutoAttack,
    External,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
    WorstCase,
)

NAN = float("nan")
OTHER = ensemble(seed=1)


@pytest.fixture(scope="module")
def problem():
    module = ensemble()
    return module, *labelled(module, 6)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (PGD(eps=-0.1), r"PGD: eps must be a finite number >= 0.*got -0.1"),
        (FGSM(eps=NAN), "FGSM: eps .* got nan"),
        (PGD(eps=float("inf")), "eps .* got inf"),
        (PGD(eps="8/255"), "eps .* got '8/255'"),
        (PGD(norm="l_inf"), "norm must be one of .* Did you mean 'linf'"),
        (PGD(norm="l1"), "norm must be one of"),
        (AutoAttack(norm="l1"), "FAB: norm must be one of"),
        (PGD(norm="L2"), "got 'L2'. Did you mean 'l2'"),
        (PGD(loss="crossentropy"), "Did you mean 'cross_entropy'"),
        (PGD(n_steps=0), "PGD: n_steps must be at least 1; got 0"),
        (BIM(step_size=0.0), "step_size must be positive or None"),
        (BIM(step_size=NAN), "step_size must be positive or None"),
        (BIM(step_size=float("inf")), "step_size must be positive or None"),
        (PGD(n_restarts=0), "n_restarts must be at least 1"),
        (PGD(n_restarts=2, random_start=False), "repeats one walk.*random_start=True"),
        (PGD(batch_size=0), "batch_size must be at least 1"),
        (MIM(decay=-1.0), "MIM: decay must be a finite number >= 0"),
        (MIM(decay=NAN), "MIM: decay"),
        (UniformNoise(n_draws=0), "n_draws must be at least 1"),
        (CW(clip_values=(1, 0)), r"clip_values must be a pair \(low, high\).*got \(1, 0\)"),
        (CW(clip_values=(0, NAN)), "clip_values must be a pair"),
        (CW(clip_values=(0, 1, 2)), "clip_values must be a pair"),
        (CW(clip_values=0.5), "clip_values must be a pair"),
        (CW(clip_values=("a", 1)), "clip_values must be a pair"),
        (WorstCase([]), "at least one attack"),
        (WorstCase([FGSM(), PGD(eps=-1)]), "PGD: eps"),
        (WorstCase([FGSM(), FGSM(targeted=True)]), "all targeted or all untargeted"),
        (PGD(aggregation=3), r"aggregation=3 .* the ensemble has 3: 0 to 2"),
        *(
            (PGD(aggregation=a), "PGD: aggregation must be one of")
            for a in (-1, "mean_logit", 0.5, None)
        ),
        (APGD(n_steps=0), "APGD: n_steps must be at least 1"),
        (APGD(n_restarts=0), "APGD: n_restarts must be at least 1"),
        (APGD(n_gradients=0), "APGD: n_gradients must be at least 1"),
        (APGD(rho=0.0), "rho must be above 0 and at most 1"),
        (TargetedAPGD(n_target_classes=0), "n_target_classes must be at least 1"),
        (TargetedAPGD(targeted=True), "TargetedAPGD is untargeted"),
        (FAB(n_steps=0), "FAB: n_steps must be at least 1"),
        (FAB(targeted=True), "FAB is untargeted"),
        (Square(n_queries=0), "n_queries must be at least 1"),
        (Square(p_init=0), "p_init must be above 0 and at most 1"),
        (AutoAttack(version="fast"), "AutoAttack: version must be one of"),
        (AutoAttack(eps=-1), "APGD: eps must be"),
        (MORA(shares=()), "MORA"),
        (MORA(shares=(1.5,)), "MORA"),
        (MORA(aggregation=0), "MORA"),
        (MORA(targeted=True), "MORA"),
        (MORA(n_steps=0), "MORA"),
        (Transfer([], PGD()), "a surrogate and an attack at least"),
        (Transfer(OTHER, []), "a surrogate and an attack at least"),
        (Transfer(OTHER, PGD(eps=-1)), "PGD: eps"),
        (Transfer(OTHER, [PGD(), PGD(targeted=True)]), "all targeted or all untargeted"),
    ],
)
def test_parameters(attack, message, problem):
    with pytest.raises(ValueError, match=message):
        attack(*problem)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (WorstCase(["pgd"]), "'pgd' is no attack"),
        (Transfer(OTHER, "pgd20"), "'p' cannot be run"),
        (Transfer(OTHER, WorstCase([PGD()])), "to its last step"),
        (External(function="pgd", eps=0.1), "function must be callable"),
    ],
)
def test_no_attacks(attack, message, problem):
    with pytest.raises(TypeError, match=message):
        attack(*problem)


def test_worst_case_checks_parts_that_have_nothing_to_do(problem):
    module, x, y = problem
    with pytest.raises(ValueError, match="PGD: eps"):
        WorstCase([FGSM(), PGD(eps=-1)])(module, x[:0], y[:0])


def test_worst_case_looks_at_decisions(problem):
    with pytest.raises(ValueError, match="stop_when_broken"):
        WorstCase([FGSM()])(*problem, stop_when_broken=False)


class TestData:
    def test_outside_the_box(self, problem):
        module, x, y = problem
        with pytest.raises(ValueError, match=r"up to 0\.5 outside clip_values=\(0, 1\).*1\.5\]"):
            PGD(clip_values=(0, 1))(module, x.clamp(0, 0.9).index_fill(1, torch.tensor(0), 1.5), y)
        with pytest.raises(ValueError, match=r"up to 0\.25 outside"):
            PGD(clip_values=(0, 1))(module, x.index_fill(1, torch.tensor(0), -0.25), y)

    @pytest.mark.parametrize("attack", [FGSM, PGD, UniformNoise])
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 1e-3), ("l2", 1e-3), ("l2", 1e-9)])
    def test_rounding_is_tolerated_and_clipped(self, attack, norm, eps, problem):
        module, x, y = problem
        x = x.index_fill(1, torch.tensor(0), -3e-8).index_fill(1, torch.tensor(1), 1 + 1e-7)
        for stop in (False, True):
            walk = attack(eps=eps, norm=norm, clip_values=(0, 1))
            found = walk(module, x, y, stop_when_broken=stop)
            assert found.min() >= 0
            assert found.max() <= 1

    @pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
    def test_not_finite(self, value, problem):
        module, x, y = problem
        x = x.index_fill(0, torch.tensor(2), value)
        for box in (None, (0, 1)):
            with pytest.raises(ValueError, match="NaN or infinity"):
                PGD(clip_values=box)(module, x, y)

    def test_lengths(self, problem):
        module, x, y = problem
        with pytest.raises(ValueError, match="X has 6 samples but y has 5 labels"):
            PGD()(module, x, y[:5])

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
    def test_dtype(self, dtype, problem):
        module, x, y = problem
        with pytest.raises(ValueError, match=f"X must be .*got {dtype}"):
            PGD()(module, x.to(dtype), y)


class TestBox:
    def test_taken_from_the_module(self):
        module = ensemble()
        x, y = labelled(module)
        module.clip_values = (0.25, 0.75)
        x = x.clamp(0.25, 0.75)
        found = FGSM(eps=0.5)(module, x, y, stop_when_broken=False)
        assert set(found.unique().tolist()) == {0.25, 0.75}

    def test_own_box_goes_first(self):
        module = ensemble()
        x, y = labelled(module)
        module.clip_values = (0.25, 0.75)
        found = FGSM(eps=1.0, clip_values=(0, 1))(module, x, y, stop_when_broken=False)
        assert set(found.unique().tolist()) == {0.0, 1.0}

    @pytest.mark.parametrize("box", [[0, 1], np.array([0.0, 1.0])])
    def test_other_pairs(self, box, problem):
        found = FGSM(eps=1.0, clip_values=box)(*problem, stop_when_broken=False)
        assert set(found.unique().tolist()) == {0.0, 1.0}

    @pytest.mark.parametrize("attack", [PGD, Square, FAB])
    def test_radius_in_other_units(self, attack, problem):
        with pytest.raises(ValueError, match=r"eps=8 is more than X can change.*mean 8/255\?"):
            attack(eps=8, clip_values=(0, 1))(*problem)
        with pytest.raises(ValueError, match=r"\[-2, 3\]: eps is in the units of X$"):
            attack(eps=8, clip_values=(-2, 3))(*problem)
        attack(eps=8, norm="l2", clip_values=(0, 1))(*problem)
        attack(eps=8)(*problem)  # in no box

    def test_bytes_under_a_radius_for_pixels_in_the_unit_interval(self):
        class Flat(torch.nn.Module):
            def forward(self, x):
                return x.flatten(1)[:, :3]

        X = torch.arange(4 * 12).reshape(4, 1, 3, 4) * 5.0
        y = torch.zeros(4, dtype=torch.int64)
        with pytest.warns(UserWarning, match=r"\[0, 235\], and eps=0.0314 .* or eps=8$"):
            FGSM(eps=8 / 255)(Flat(), X, y)
        FGSM(eps=8)(Flat(), X, y)
        FGSM(eps=8 / 255)(Flat(), X / 100, y)
        FGSM(eps=8 / 255)(Flat(), X.flatten(1), y)


@pytest.mark.parametrize(
    "attack", [FGSM(eps=0.1), MIM(decay=0.5), UniformNoise(), WorstCase([FGSM(), PGD(eps=0.5)])]
)
def test_scikit_learn_parameters(attack):
    copy = clone(attack)
    assert repr(copy) == repr(attack)
    assert copy.get_params(deep=False).keys() == attack.get_params(deep=False).keys()


def test_set_params(problem):
    found = PGD().set_params(eps=0.2, n_steps=3)(*problem)
    assert torch.equal(found, PGD(eps=0.2, n_steps=3)(*problem))


def test_keyword_only():
    with pytest.raises(TypeError):
        PGD(0.1)
