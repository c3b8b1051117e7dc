"""Each part of AutoAttack, and the minimum-norm attacks, against other libraries' own.

On 300 images, robust accuracy under our attack is at most one image above the oracle's. One walk
of APGD from another random point decides up to four images differently, in both implementations,
so that these are compared over five walks, and by two images.
"""

import pytest
import torch
from oracle_models import EPS, PROBLEMS, accuracy

from robust_ensembles.attacks import (
    APGD,
    FAB,
    FGSM,
    AutoAttack,
    CarliniWagnerL2,
    DeepFool,
    Square,
    TargetedAPGD,
    is_broken,
)

pytestmark = [
    pytest.mark.oracle,
    # the other libraries' own, of bare class Warning too
    pytest.mark.filterwarnings("ignore::Warning"),
]

ONE_IMAGE = 1 / 300 + 1e-6
every_problem = pytest.mark.parametrize(("name", "norm"), PROBLEMS)


def robust(module, attack, x, y):
    return accuracy(module, attack(module, x, y), y)


def theirs(module, kind, norm, eps, x, y):
    """Robust accuracy under a part of pyautoattack, on the samples that are right."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    fab, square = (pytest.importorskip(f"pyautoattack.{name}") for name in ("fab_pt", "square"))
    shared = {"norm": norm, "eps": eps, "seed": 0, "device": "cpu"}
    attack = {
        "ce": lambda: base.APGDAttack(module, loss="ce", n_restarts=5, **shared),
        "dlr": lambda: base.APGDAttack(module, loss="dlr", n_restarts=5, **shared),
        "targeted": lambda: base.APGDAttack_targeted(module, n_iter=50, **shared),
        "fab": lambda: fab.FABAttack_PT(module, targeted=True, n_iter=50, **shared),
        "square": lambda: square.SquareAttack(module, n_queries=500, **shared),
    }[kind]()
    right = ~is_broken(module, x, y)
    x_adv = x.clone()
    # it takes pictures
    flat = x[right].view(-1, 1, 8, 8) if kind == "square" else x[right]
    if kind == "square":
        attack.predict = lambda images: module(images.flatten(1))
    with torch.random.fork_rng(devices=[]):
        made = attack.perturb(flat, y[right]).reshape(-1, x.shape[1])
    inside = (made - x[right]).norm(p={"Linf": float("inf"), "L2": 2}[norm], dim=1) <= eps + 1e-5
    x_adv[right] = torch.where(inside[:, None], made, x[right])
    return accuracy(module, x_adv, y)


PARTS = {
    "ce": (APGD, {"loss": "margin", "n_restarts": 5}),
    "dlr": (APGD, {"loss": "dlr", "n_restarts": 5}),
    "targeted": (TargetedAPGD, {"n_steps": 50}),
    "fab": (FAB, {"n_steps": 50}),
    "square": (Square, {"n_queries": 500}),
}


@every_problem
@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_autoattack(kind, name, norm, models, test_part):
    x, y = test_part
    cls, params = PARTS[kind]
    eps = EPS[name][norm]
    module = models[name]
    attack = cls(eps=eps, norm=norm.lower(), clip_values=(0, 1), **params)
    if kind == "square":
        x_images = x.view(-1, 1, 8, 8)
        flat = torch.nn.Sequential(torch.nn.Flatten(), module).eval()
        ours = robust(flat, attack, x_images, y)
    else:
        ours = robust(module, attack, x, y)
    assert 0.1 < ours < 0.9
    slack = 2 * ONE_IMAGE if cls is APGD else ONE_IMAGE
    assert ours <= theirs(module, kind, norm, eps, x, y) + slack


@every_problem
def test_autoattack(name, norm, models, test_part):
    autoattack = pytest.importorskip("pyautoattack").AutoAttack
    x, y = test_part
    module, eps = models[name], EPS[name][norm]
    ours = robust(
        module, AutoAttack(eps=eps, norm=norm.lower(), clip_values=(0, 1), n_queries=1000), x, y
    )
    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"]
    their = autoattack(
        torch.nn.Sequential(torch.nn.Flatten(), module).eval(),
        norm=norm,
        eps=eps,
        seed=0,
        version="custom",
        attacks=attacks,
        device="cpu",
    )
    their.square.n_queries = 1000
    with torch.random.fork_rng(devices=[]):
        made, *_ = their.run_standard_evaluation(x.view(-1, 1, 8, 8), y, batch_size=300)
    assert ours <= accuracy(module, made.flatten(1), y) + ONE_IMAGE


@every_problem
def test_fgsm_and_deepfool(name, norm, models, test_part):
    foolbox = pytest.importorskip("foolbox")
    x, y = test_part
    module, eps = models[name], EPS[name][norm]
    kinds = foolbox.attacks
    pairs = [
        (FGSM, {"Linf": kinds.LinfFastGradientAttack, "L2": kinds.L2FastGradientAttack}[norm]()),
        (DeepFool, {"Linf": kinds.LinfDeepFoolAttack, "L2": kinds.L2DeepFoolAttack}[norm]()),
    ]
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    for cls, their in pairs:
        _, x_adv, _ = their(target, x, y, epsilons=eps)
        ours = robust(module, cls(eps=eps, norm=norm.lower(), clip_values=(0, 1)), x, y)
        assert ours <= accuracy(module, x_adv, y) + ONE_IMAGE, cls


@pytest.mark.parametrize("name", EPS)
def test_carlini_wagner(name, models, test_part):
    """Distances as short as foolbox's, on fewer images, since both are slow.

    Confident members hide their gradients at a mean probability of 1/3 or 2/3: their logits do not.
    """
    foolbox = pytest.importorskip("foolbox")
    x, y = (part[:60] for part in test_part)
    module = models[name]
    their = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=300, stepsize=0.01, initial_const=0.1
    )
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    _, made, _ = their(target, x, y, epsilons=None)
    attack = CarliniWagnerL2(
        n_searches=6,
        n_steps=300,
        lr=0.01,
        initial_const=0.1,
        clip_values=(0, 1),
        aggregation="mean_logits" if name == "confident" else "mean_proba",
    )
    found = attack(module, x, y, stop_when_broken=False)
    ours, other = (is_broken(module, z, y) for z in (found, made))
    assert ours.sum() >= other.sum() - 1
    both = ours & other & ~is_broken(module, x, y)
    near, far = ((z - x)[both].norm(dim=1).mean() for z in (found, made))
    assert near <= 1.01 * far


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_stronger_where_cross_entropy_saturates(norm, models, test_part):
    """Logits x30 blind the cross-entropy of the original in float32, by 12 points and more."""
    x, y = test_part
    module, eps = models["confident"], EPS["confident"][norm]
    ours = robust(module, APGD(eps=eps, norm=norm.lower(), clip_values=(0, 1)), x, y)
    assert ours <= theirs(module, "ce", norm, eps, x, y) - 0.12
