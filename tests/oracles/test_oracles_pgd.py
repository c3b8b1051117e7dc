"""Our PGD is not weaker than other libraries', and stronger where cross-entropy saturates."""

import pytest
import torch
from oracle_models import EPS, PROBLEMS, accuracy

from robust_ensembles.attacks import CW, PGD, WorstCase, is_broken

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::Warning"),  # of the other libraries
]

N_STEPS, RELATIVE_STEP = 40, 1 / 10
every_problem = pytest.mark.parametrize(("name", "norm"), PROBLEMS)


def ours(module, norm, eps, x, y, *, random_start=False, attack=PGD, n_restarts=1):
    walk = attack(
        eps=eps,
        norm=norm.lower(),
        n_steps=N_STEPS,
        step_size=RELATIVE_STEP * eps,
        random_start=random_start,
        n_restarts=n_restarts,
        clip_values=(0, 1),
    )
    return accuracy(module, walk(module, x, y), y)


def foolbox_pgd(module, norm, eps, x, y, *, random_start=False):
    """Cross-entropy of the log mean probability, which is a valid logit."""
    foolbox = pytest.importorskip("foolbox")
    attack = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm](
        steps=N_STEPS, rel_stepsize=RELATIVE_STEP, random_start=random_start
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        _, x_adv, _ = attack(target, x, y, epsilons=eps)
    return accuracy(module, x_adv, y)


def apgd_ce(module, norm, eps, x, y):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    attack = base.APGDAttack(
        module, n_iter=N_STEPS, norm=norm, eps=eps, seed=0, loss="ce", device="cpu"
    )
    with torch.random.fork_rng(devices=[]):
        x_adv = attack.perturb(x.clone(), y)
    return accuracy(module, x_adv, y)


@every_problem
def test_clean_and_medium(name, norm, models, test_part):
    """The comparisons below say something: accuracy is neither high nor low."""
    x, y = test_part
    assert accuracy(models[name], x, y) > 0.85
    assert 0.2 < ours(models[name], norm, EPS[name][norm], x, y) < 0.8


@every_problem
def test_not_weaker_than_foolbox(name, norm, models, test_part):
    problem = (models[name], norm, EPS[name][norm], *test_part)
    assert ours(*problem) <= foolbox_pgd(*problem) + 0.003


@every_problem
def test_not_weaker_than_foolbox_from_random_starts(name, norm, models, test_part):
    """Their noise is not ours: each wins a few samples of the 300 from the other."""
    problem = (models[name], norm, EPS[name][norm], *test_part)
    assert ours(*problem, random_start=True) <= foolbox_pgd(*problem, random_start=True) + 0.02
    restarted = ours(*problem, random_start=True, n_restarts=5)
    assert restarted <= ours(*problem, random_start=True)
    assert restarted <= foolbox_pgd(*problem, random_start=True) + 0.003


@every_problem
def test_close_to_apgd(name, norm, models, test_part):
    """Plain PGD need not match it strictly: APGD adapts its steps and keeps the best iterate."""
    problem = (models[name], norm, EPS[name][norm], *test_part)
    assert ours(*problem, random_start=True, n_restarts=3) <= apgd_ce(*problem) + 0.02


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [PGD, CW])
def test_stronger_where_cross_entropy_saturates(attack, norm, models, test_part):
    problem = (models["confident"], norm, EPS["confident"][norm], *test_part)
    assert ours(*problem, attack=attack) <= foolbox_pgd(*problem) - 0.05


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_confidence_does_not_change_the_truth(norm, models, test_part):
    """Logits x30 leave (nearly) the same decisions, hence the same robustness."""
    eps = EPS["confident"][norm]
    found = {name: ours(models[name], norm, eps, *test_part) for name in ("plain", "confident")}
    assert found["confident"] == pytest.approx(found["plain"], abs=0.06)


def test_same_walk_as_foolbox(models, test_part):
    """Step by step the same points, where cross-entropy has digits left."""
    foolbox = pytest.importorskip("foolbox")
    x, y = test_part
    module = models["adversarial"]
    attack = foolbox.attacks.LinfPGD(steps=7, rel_stepsize=0.2, random_start=False)
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    _, theirs, _ = attack(target, x, y, epsilons=0.1)
    walk = PGD(eps=0.1, step_size=0.02, n_steps=7, random_start=False, clip_values=(0, 1))
    found = walk(module, x, y, stop_when_broken=False)
    same = ((found - theirs).abs() < 1e-6).float().mean()
    assert same > 0.995


def test_worst_case_with_other_libraries_points(models, test_part):
    """A foolbox point that breaks our prediction is broken for `is_broken`, too."""
    foolbox = pytest.importorskip("foolbox")
    x, y = test_part
    module = models["plain"]
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfFastGradientAttack()
    _, theirs, success = attack(target, x, y, epsilons=0.09)
    assert torch.equal(success, is_broken(module, theirs, y))
    union = WorstCase([PGD(eps=0.09, clip_values=(0, 1))])(module, x, y)
    assert accuracy(module, union, y) <= accuracy(module, theirs, y)
