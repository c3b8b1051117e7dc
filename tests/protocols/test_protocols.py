"""The numbers of each protocol, recomputed by hand, and the quirks that set them apart."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_ensembles import GALEnsembleClassifier, VanillaEnsembleClassifier, protocols
from robust_ensembles.attacks import BIM, CW, FGSM, MIM, PGD, AutoAttack, Transfer, is_broken
from robust_ensembles.modules import Ensemble
from robust_ensembles.protocols.ceat import published_attacks
from robust_ensembles.protocols.cldl import transfer_attacks
from robust_ensembles.protocols.ncen import released_attacks

EPS = 0.15
BOX = (0.0, 1.0)
N_FEATURES, N_CLASSES = 6, 3


def linear(seed, *, scale=1.0, kind=nn.Linear):
    generator = torch.Generator().manual_seed(seed)
    layer = kind(N_FEATURES, N_CLASSES)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(N_CLASSES, N_FEATURES, generator=generator))
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)  # classes meet in the middle of the box
    return layer


def ensemble(seed, n_members=3, **params):
    return Ensemble([linear(seed + i, **params) for i in range(n_members)])


def points(n_samples, module=None, *, n_wrong=0):
    """Points of the unit box, labelled by a module, but for the first few."""
    x = torch.rand(n_samples, N_FEATURES, generator=torch.Generator().manual_seed(7))
    y = (linear(0) if module is None else module)(x).argmax(dim=1)
    y[:n_wrong] = (y[:n_wrong] + 1) % N_CLASSES
    return x.numpy(), y.numpy()


def right(module, x, y):
    return (~is_broken(module, torch.as_tensor(x), torch.as_tensor(y))).numpy()


def made(attack, module, X, y):
    return attack(module, torch.from_numpy(X), torch.from_numpy(y), stop_when_broken=False)


def value(result, column, **where):
    table = result.to_frame()
    for name, wanted in where.items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return table[column].item()


@pytest.fixture(scope="module")
def black_box():
    target, other = ensemble(20), linear(5)
    surrogates = [linear(1), ensemble(30, 2)]
    X, y = points(60, target, n_wrong=9)
    result = protocols.cldl(
        {"first": target, "second": other}, X, y, surrogates=surrogates, eps=EPS, subset="all"
    )
    return result, {"first": target, "second": other}, surrogates, X, y


# ------------------------------------------------------------------------------------ CLDL


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize(("attack", "n_seeds"), [("PGD", 3), ("MIM", 1), ("FGSM", 1)])
def test_cldl_by_hand(black_box, name, attack, n_seeds):
    result, targets, surrogates, X, y = black_box
    kind = {"PGD": PGD, "MIM": MIM, "FGSM": FGSM}[attack]
    steps = {} if attack == "FGSM" else {"n_steps": 10, "step_size": EPS / 5}
    clean = right(targets[name], X, y)

    def robust(losses):
        mask = clean.copy()
        for loss in losses:
            for seed in range(n_seeds):
                one = kind(eps=EPS, loss=loss, random_state=seed, clip_values=BOX, **steps)
                for surrogate in surrogates:
                    mask &= right(targets[name], made(one, surrogate, X, y), y)
        return mask

    faithful = robust(["cross_entropy", "released_cw"])
    sound = faithful & robust(["cw_margin"])
    row = {"estimator": name, "attack": attack, "threat": "black"}
    conditional = {**row, "metric": "conditional"}
    assert value(result, "faithful", **conditional) == faithful.sum() / clean.sum()
    assert value(result, "sound", **conditional) == sound.sum() / clean.sum()
    assert value(result, "n_samples", **conditional) == clean.sum() < len(y)
    unconditional = {**row, "metric": "unconditional"}
    assert value(result, "faithful", **unconditional) == faithful.mean()
    assert value(result, "sound", **unconditional) == sound.mean()
    assert value(result, "n_samples", **unconditional) == len(y)
    assert value(result, "published", **conditional)
    assert not value(result, "published", **unconditional)
    assert 0 < faithful.sum() < clean.sum()


def test_cldl_is_a_transfer_attack(black_box):
    result, targets, surrogates, X, y = black_box
    attacks = transfer_attacks(EPS, ["cross_entropy", "released_cw"], [0, 1, 2], clip_values=BOX)
    everything = Transfer(surrogates, [one for several in attacks.values() for one in several])
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    withstood = right(targets["first"], everything(targets["first"], x, labels), y)
    worst = {"estimator": "first", "attack": "worst", "metric": "unconditional"}
    assert value(result, "faithful", **worst) == withstood.mean()


def test_wrong_when_clean_is_not_robust():
    target = linear(0)
    X, y = points(40, target, n_wrong=30)
    # moves images towards the label, as the target sees it
    opposed = ensemble(0, 1, scale=-1.0)
    result = protocols.cldl(target, X, y, surrogates=opposed, eps=0.5, subset="all", cw="sound")
    clean = right(target, X, y)
    attack = FGSM(eps=0.5, loss="cross_entropy", clip_values=BOX)
    assert right(target, made(attack, opposed, X, y), y).mean() > clean.mean()
    where = {"attack": "FGSM", "metric": "unconditional"}
    assert value(result, "faithful", **where) == clean.mean() == value(result, "sound", **where)


def test_split_is_that_of_the_global_generator():
    state = random.getstate()
    hyper_parameters, evaluation = protocols.cldl_split()
    assert random.getstate() == state
    random.seed(0)
    order = random.sample(range(10_000), 10_000)
    random.setstate(state)
    assert order[:3] == [6311, 6890, 663]
    assert np.concatenate([hyper_parameters, evaluation]).tolist() == order
    assert len(hyper_parameters) == 1_000


@pytest.mark.parametrize(("subset", "part"), [("hyper-parameters", 0), ("evaluation", 1)])
def test_released_subsets(subset, part):
    target = linear(0)
    X, y = points(10_000, target, n_wrong=4_000)
    index = protocols.cldl_split()[part]
    result = protocols.cldl(
        target, X, y, surrogates=linear(1), eps=EPS, subset=subset, batch_size=10_000
    )
    assert value(result, "n_samples", attack="clean") == len(index)
    assert value(result, "sound", attack="clean") == right(target, X[index], y[index]).mean()
    fgsm = {"attack": "FGSM", "metric": "conditional"}
    assert value(result, "n_samples", **fgsm) == right(target, X[index], y[index]).sum()


def test_common_correct():
    targets = {"first": linear(0), "second": linear(5)}
    X, y = points(60, n_wrong=9)
    result = protocols.cldl(targets, X, y, surrogates=linear(1), eps=EPS, subset="common_correct")
    both = np.logical_and(*(right(target, X, y) for target in targets.values()))
    assert 0 < both.sum() < 51
    assert set(result.to_frame().n_samples) == {both.sum()} == {result.settings["n_images"]}


def test_cw_released_is_blind_on_a_confident_surrogate():
    target, surrogate = linear(0), linear(0, scale=1e7)
    with torch.no_grad():
        surrogate.weight[0, 0] += 1e5  # not quite the target
    X, y = points(60, target)
    sure = right(surrogate, X, y)
    X, y = X[sure], y[sure]
    results = {
        cw: protocols.cldl(target, X, y, surrogates=surrogate, eps=EPS, subset="all", cw=cw)
        for cw in ("released", "sound")
    }
    where = {"attack": "BIM", "metric": "conditional"}
    # cross-entropy and the released loss are flat there, so that nothing moves
    assert value(results["released"], "faithful", **where) == 1
    assert value(results["sound"], "faithful", **where) < 0.8
    assert value(results["released"], "sound", **where) == value(
        results["sound"], "faithful", **where
    )


class Counted(nn.Linear):
    n_gradients = 0

    def forward(self, x):
        self.n_gradients += x.requires_grad
        return super().forward(x)


def test_surrogates_are_attacked_once_for_all_targets():
    X, y = points(20)
    counts = []
    for n_targets in (1, 3):
        surrogate = linear(1, kind=Counted)
        targets = {str(seed): linear(seed + 2) for seed in range(n_targets)}
        protocols.cldl(targets, X, y, surrogates=[surrogate], eps=EPS, subset="all")
        counts.append(surrogate.n_gradients)
    check = 1  # that gradients can pass
    # three losses; FGSM, BIM, MIM, and PGD from three starts
    assert counts == [check + 3 * (1 + 10 + 10 + 3 * 10)] * 2


def test_cldl_white_box_counts_as_the_code_does():
    target = ensemble(20)
    X, y = points(60, target, n_wrong=40)
    result = protocols.cldl(
        target, X, y, surrogates=linear(1), eps=EPS, subset="all", white_box=True
    )
    walk = {"n_steps": 10, "step_size": EPS / 5, "loss": "cross_entropy", "clip_values": BOX}
    after = np.ones(60, dtype=bool)
    for seed in range(5):
        attack = PGD(eps=EPS, random_state=seed, **walk)
        after &= right(target, made(attack, target, X, y), y)
    where = {"threat": "white", "attack": "PGD", "metric": "unconditional"}
    assert value(result, "faithful", **where) == after.mean()
    bim = right(target, made(BIM(eps=EPS, **walk), target, X, y), y)
    assert value(result, "faithful", **{**where, "attack": "BIM"}) == bim.mean()
    assert value(result, "sound", **where) <= (after & right(target, X, y)).mean()
    assert not result.to_frame().query("threat == 'white'").published.any()
    attacks = result.settings["attacks"]
    seeds = [one for one in attacks["faithful, white box"] if one.startswith("PGD")]
    assert [f"random_state={seed}" in one for seed, one in enumerate(seeds)] == [False] + 4 * [True]
    assert all(f"step_size={EPS / 4}" in one for one in attacks["sound, white box"])


def test_the_target_is_no_surrogate():
    target = ensemble(20)
    X, y = points(20, target)
    for surrogate in (target, target[1]):
        with pytest.raises(ValueError, match=r"surrogates\[1\] and 'mine': .*white-box"):
            protocols.cldl(
                {"mine": target}, X, y, surrogates=[linear(1), surrogate], eps=EPS, subset="all"
            )


def test_transfer_attacks_are_those_of_the_paper():
    attacks = transfer_attacks(0.2, ["cross_entropy", "cw_margin"], [0, 1, 2])
    assert {name: type(several[0]) for name, several in attacks.items()} == {
        "BIM": BIM,
        "FGSM": FGSM,
        "MIM": MIM,
        "PGD": PGD,
    }
    assert [(a.loss, a.random_state) for a in attacks["PGD"]] == [
        (loss, seed) for loss in ("cross_entropy", "cw_margin") for seed in (0, 1, 2)
    ]
    for name in ("BIM", "MIM", "PGD"):
        assert {(a.eps, a.n_steps, a.step_size) for a in attacks[name]} == {(0.2, 10, 0.04)}
        assert {a.random_start for a in attacks[name]} == {name == "PGD"}
    assert [a.n_steps for a in attacks["FGSM"]] == [1, 1]


# ------------------------------------------------------------------------------------ NCEn


def test_ncen_by_hand():
    target = ensemble(20)
    X, y = points(60, target, n_wrong=9)
    result = protocols.ncen(target, X, y, eps=EPS, random_state=4)
    clean = right(target, X, y)
    params = {"eps": EPS, "loss": "double_softmax", "clip_values": BOX, "random_state": 4}
    attacks = {
        "FGSM": FGSM(**params),
        "MI-FGSM": MIM(n_steps=40, step_size=0.01, **params),
        "PGD": PGD(n_steps=40, step_size=EPS, **params),
        "BIM": BIM(n_steps=10, step_size=EPS, **params),
    }
    survived = []
    for name, attack in attacks.items():
        mask = right(target, made(attack, target, X, y), y) & clean
        survived.append(mask)
        aae = {"attack": name, "metric": "conditional"}
        assert value(result, "faithful", **aae) == mask.sum() / clean.sum()
        assert value(result, "n_samples", **aae) == clean.sum()
        unconditional = {"attack": name, "metric": "unconditional"}
        assert value(result, "faithful", **unconditional) == mask.mean()
        sound = [
            PGD(eps=EPS, n_steps=40, loss=loss, clip_values=BOX, random_state=4)
            for loss in ("margin", "member_cross_entropy")
        ]
        x, labels = torch.from_numpy(X), torch.from_numpy(y)
        for one in sound:
            mask = mask & right(target, one(target, x, labels), y)
        assert value(result, "sound", **unconditional) == mask.mean()
    worst = {"attack": "worst", "metric": "conditional"}
    assert value(result, "faithful", **worst) == np.all(survived, axis=0).sum() / clean.sum()
    assert value(result, "faithful", attack="clean") == clean.mean()


def test_ncen_attacks_are_those_of_the_paper():
    grids = {"FGSM": (0.1, 0.3), "MI-FGSM": (0.1, 0.3), "PGD": (0.1, 0.15), "BIM": (0.1, 0.15)}
    attacks = released_attacks(grids, "double_softmax", random_state=123)
    assert {eps: list(named) for eps, named in attacks.items()} == {
        0.1: ["FGSM", "MI-FGSM", "PGD", "BIM"],
        0.15: ["PGD", "BIM"],
        0.3: ["FGSM", "MI-FGSM"],
    }
    shapes = {
        name: (one.n_steps, one.step_size, one.random_start, one.random_state, one.loss)
        for name, [one] in attacks[0.1].items()
    }
    assert shapes == {
        "FGSM": (1, None, False, 123, "double_softmax"),
        "MI-FGSM": (40, 0.01, False, 123, "double_softmax"),
        "PGD": (40, 0.1, True, 123, "double_softmax"),
        "BIM": (10, 0.1, False, 123, "double_softmax"),
    }
    assert attacks[0.3]["MI-FGSM"][0].decay == 1


@pytest.mark.parametrize(
    ("dataset", "wide", "narrow"),
    [("cifar10", (0.03, 0.09), (0.01, 0.02)), ("fashion-mnist", (0.1, 0.3), (0.1, 0.15))],
)
def test_ncen_grids(dataset, wide, narrow):
    X, y = points(4)
    table = protocols.ncen(linear(0), X, y, dataset=dataset, loss="paper").to_frame()
    for attack, grid in {"FGSM": wide, "MI-FGSM": wide, "PGD": narrow, "BIM": narrow}.items():
        assert tuple(table[table.attack == attack].eps.unique()) == grid


def test_ncen_losses_differ():
    X, y = points(20)
    released, paper = (
        protocols.ncen(ensemble(20), X, y, eps=EPS, loss=loss).settings["attacks"]["faithful"]
        for loss in ("released", "paper")
    )
    assert all("loss='double_softmax'" in attack for attack in released)
    assert all("loss='member_cross_entropy'" in attack for attack in paper)


def test_ncen_batch_statistics():
    norm = nn.BatchNorm1d(N_FEATURES)
    norm.running_mean.uniform_(generator=torch.Generator().manual_seed(3))
    target = Ensemble([nn.Sequential(norm, linear(0)), linear(3)]).train()
    X, y = points(129, linear(0), n_wrong=8)
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    result = protocols.ncen(target, X, y, eps=EPS)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert norm.training
    # by hand, in training mode; a last batch of one joins the one before
    with torch.no_grad():
        clean = torch.cat([target(part).argmax(dim=1) for part in (x[:64], x[64:])]) == labels
        chosen, kept = clean.nonzero().squeeze(1), []
    for batch in chosen.split(64):
        part = x[batch].requires_grad_()
        loss = F.cross_entropy(target(part).exp().softmax(dim=1), labels[batch], reduction="sum")
        moved = part.detach() + EPS * torch.autograd.grad(loss, part)[0].sign()
        with torch.no_grad():
            kept.append(target(moved.clamp(0, 1)).argmax(dim=1) == labels[batch])
    aae = {"attack": "FGSM", "metric": "conditional"}
    assert value(result, "faithful", attack="clean") == clean.numpy().mean()
    assert value(result, "n_samples", **aae) == len(chosen)
    assert value(result, "faithful", **aae) == torch.cat(kept).numpy().mean()
    # deployed, it is another model
    target.load_state_dict(before)
    deployed = right(target, X, y).mean()
    assert value(result, "sound", attack="clean") == deployed != clean.numpy().mean()
    running = protocols.ncen(target, X, y, eps=EPS, batch_norm="eval")
    assert value(running, "faithful", **aae) != value(result, "faithful", **aae)


# ------------------------------------------------------------------------------------ CEAT


def test_ceat_by_hand():
    target = ensemble(20)
    X, y = points(60, target, n_wrong=40)
    result = protocols.ceat(target, X, y, eps=EPS, step_size=0.04, n_queries=20)
    params = {"eps": EPS, "n_steps": 20, "step_size": 0.04, "clip_values": BOX}
    attacks = {
        "PGD20": PGD(loss="cross_entropy", **params),
        "MIM": MIM(loss="cross_entropy", **params),
        "CW": CW(**params),
    }
    clean = right(target, X, y)
    for name, attack in attacks.items():
        after = right(target, made(attack, target, X, y), y)
        where = {"attack": name, "metric": "unconditional"}
        assert value(result, "faithful", **where) == after.mean()
        assert value(result, "sound", **where) <= (after & clean).mean()
        assert value(result, "published", **where)


class Cliff(nn.Module):
    """Its slope leads away from the edge, so that only random search falls down."""

    def forward(self, x):
        height = (x[:, 0] > 0.5).float() - 0.5 - 0.01 * x[:, 0]
        return torch.stack([height, -height], dim=1)


def test_ceat_runs_autoattack():
    target = Cliff()
    X = points(20)[0][:, :1]
    y = (X[:, 0] <= 0.5).astype(int)
    y[:5] = 1 - y[:5]
    result = protocols.ceat(target, X, y, eps=0.2, n_queries=30)
    attack = AutoAttack(eps=0.2, n_queries=30, clip_values=BOX)
    x_adv = attack(target, torch.from_numpy(X), torch.from_numpy(y))
    withstood = right(target, X, y) & right(target, x_adv, y)
    where = {"metric": "unconditional"}
    assert value(result, "faithful", attack="AA", **where) == withstood.mean()
    assert withstood.mean() < value(result, "sound", attack="CW", **where)
    assert value(result, "sound", attack="worst", **where) == withstood.mean()


def test_ceat_attacks_are_those_of_the_paper():
    walk = {"eps": 0.031, "n_steps": 20, "step_size": 0.007, "random_state": 3}
    attacks = published_attacks(walk, AutoAttack(eps=0.031))
    assert list(attacks) == ["PGD20", "MIM", "CW", "AA"]
    for name in ("PGD20", "MIM", "CW"):
        [attack] = attacks[name]
        assert {key: getattr(attack, key) for key in walk} == walk
        assert attack.loss == ("cw_margin" if name == "CW" else "cross_entropy")
        assert attack.random_start == (name != "MIM")


def test_ceat_runs_what_is_asked_for():
    target = ensemble(20)
    X, y = points(20, target)
    settings = {"eps": EPS, "step_size": 0.04, "n_queries": 5}
    everything = protocols.ceat(target, X, y, **settings).to_frame()
    some = protocols.ceat(target, X, y, attacks=["PGD", "CW"], **settings)
    assert list(some.to_frame().attack.unique()) == ["clean", "PGD20", "CW", "worst"]
    assert len(some.settings["attacks"]["faithful"]) == 2
    for attack in ("PGD20", "CW"):
        mine, all_of_it = (
            frame[frame.attack == attack].reset_index(drop=True)
            for frame in (some.to_frame(), everything)
        )
        assert mine.equals(all_of_it)


@pytest.mark.parametrize("ensemble_attack", [None, "mora", "autoattack"])
def test_ceat_says_what_the_sound_number_is_without(ensemble_attack):
    target = ensemble(20)
    X, y = points(6, target)
    result = protocols.ceat(
        target, X, y, eps=1.0, n_steps=2, n_queries=5, ensemble_attack=ensemble_attack
    )
    names = {None: 0, "mora": "MORA", "autoattack": "EnsembleAutoAttack"}
    ran = [attack.split("(")[0] for attack in result.settings["attacks"]["sound"]]
    assert ran == ["PGD", "PGD", *([names[ensemble_attack]] if ensemble_attack else [])]
    assert ("is without" in result.quirks[-1]) == (ensemble_attack is None)


# --------------------------------------------------------------------------- what all share


class Wave(nn.Module):
    """Steps as long as the ball can lead from wrong to right."""

    def forward(self, x):
        wave = (40 * x[:, 0]).sin()
        return torch.stack([wave, -wave], dim=1)


def test_who_counts_that_is_wrong_when_clean():
    target = Wave()
    X = points(60)[0][:, :1]
    y = np.arange(60) % 2
    params = {"eps": 0.1, "clip_values": BOX}
    clean = right(target, X, y)
    where = {"attack": "FGSM", "metric": "unconditional"}

    after = right(target, made(FGSM(loss="double_softmax", **params), target, X, y), y)
    assert (after & ~clean).sum() > 5
    only_right = protocols.ncen(target, X, y, eps=0.1)
    assert value(only_right, "faithful", **where) == (after & clean).mean()

    white = {"surrogates": Wave(), "subset": "all", "white_box": True}
    after = right(target, made(FGSM(loss="cross_entropy", **params), target, X, y), y)
    assert (after & ~clean).sum() > 5
    everyone = protocols.cldl(target, X, y, eps=0.1, **white)
    assert value(everyone, "faithful", threat="white", **where) == after.mean()
    conditional = {"threat": "white", "attack": "FGSM", "metric": "conditional"}
    assert value(everyone, "faithful", **conditional) == after[clean].mean()
    assert value(everyone, "sound", threat="white", **where) <= (after & clean).mean()


PROTOCOLS = {
    "cldl": {"surrogates": linear(1), "subset": "all", "white_box": True},
    "ncen": {},
    "ceat": {"n_queries": 5},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_worst_and_sound_are_never_above(name):
    X, y = points(25, n_wrong=3)
    targets = {"a|b": ensemble(20, 2), "c": linear(4)}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    result = getattr(protocols, name)(targets, X, y, eps=EPS, **PROTOCOLS[name])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    table = result.to_frame()
    assert list(table.columns) == [
        "estimator", "threat", "attack", "eps", "metric", "faithful", "sound", "n_samples",
        "published",
    ]  # fmt: skip
    assert (table.sound <= table.faithful).all()
    attacked = table[table.attack != "clean"]
    for _, group in attacked.groupby(["estimator", "threat", "eps", "metric"]):
        worst = group[group.attack == "worst"]
        assert len(worst) == 1
        assert len(group) == 5
        assert (worst.faithful.item() <= group.faithful).all()
        assert (worst.sound.item() <= group.sound).all()
    json.dumps(result.settings)
    text = result.to_markdown()
    assert all(quirk in text for quirk in result.quirks)
    assert "| a\\|b | none | clean | 0 | unconditional |" in text
    assert text.count("\n| ") == len(table) + 2


@pytest.mark.parametrize("name", ["cldl", "ncen"])
def test_batches_do_not_matter(name):
    X, y = points(20, n_wrong=2)
    protocol = getattr(protocols, name)
    tables = [
        protocol(ensemble(20), X, y, eps=EPS, batch_size=size, **PROTOCOLS[name]).to_frame()
        for size in (256, 7)
    ]
    assert tables[0].equals(tables[1])


def test_uint8_images_are_scaled(digit_rows):
    X_train, X, y_train, y = digit_rows
    whole = np.rint(255 * X[:20]).astype(np.uint8)
    target, surrogate = (
        VanillaEnsembleClassifier(
            n_estimators=2, max_epochs=8, lr=0.01, device="cpu", random_state=seed
        ).fit(X_train, y_train)
        for seed in (0, 1)
    )
    tables = [
        protocols.cldl(target, part, y[:20], surrogates=[surrogate], eps=0.1, subset="all")
        for part in (whole, whole.astype(np.float32) / np.float32(255))
    ]
    assert tables[0].to_frame().equals(tables[1].to_frame())
    assert value(tables[0], "sound", attack="worst", metric="unconditional") < 1


def test_surrogates_have_the_recipe_of_the_target(digit_rows):
    X, _, y, _ = digit_rows
    recipe = GALEnsembleClassifier(
        module_params={"hidden_sizes": (4,)}, max_epochs=1, batch_size=50, device="cpu"
    )
    surrogates = protocols.train_surrogates(recipe, X, y)
    assert [len(one.estimators_) for one in surrogates] == [3, 5]
    assert [one.random_state for one in surrogates] == [1003, 1005]
    for one in surrogates:
        assert type(one) is VanillaEnsembleClassifier
        assert (one.batch_size, one.module_params) == (50, {"hidden_sizes": (4,)})
    settings = {"max_epochs": 1, "device": "cpu", "module_params": {"hidden_sizes": (4,)}}
    [other] = protocols.train_surrogates({**settings, "batch_size": 50}, X, y, n_members=[3])
    weights = zip(other.module_.parameters(), surrogates[0].module_.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
    with pytest.raises(TypeError, match="recipe must be an ensemble"):
        protocols.train_surrogates(linear(0), X, y)


BAD = {
    "cldl-dataset": ("cldl", {"dataset": "cifar-10"}, "Did you mean 'cifar10'"),
    "cldl-nothing": ("cldl", {}, "needs eps, or a dataset"),
    "cldl-subset": ("cldl", {"eps": EPS, "subset": "evaluate"}, "Did you mean 'evaluation'"),
    "cldl-number": ("cldl", {"eps": EPS, "subset": "evaluation"}, "got 20 images.*subset='all'"),
    "cldl-cw": ("cldl", {"eps": EPS, "cw": "release"}, "Did you mean 'released'"),
    "cldl-empty": ("cldl", {"eps": EPS, "surrogates": []}, "surrogates is empty"),
    "cldl-eps": ("cldl", {"eps": [0.1, -0.1]}, "eps must be a positive number"),
    "ncen-dataset": ("ncen", {"dataset": "fashion_mnist"}, "Did you mean 'fashion-mnist'"),
    "ncen-loss": ("ncen", {"eps": EPS, "loss": "papers"}, "Did you mean 'paper'"),
    "ncen-batch-norm": ("ncen", {"eps": EPS, "batch_norm": "evil"}, "Did you mean 'eval'"),
    "ceat-eps": ("ceat", {"eps": 0.0}, "eps must be a positive number"),
    "ceat-attack": ("ceat", {"ensemble_attack": "auto"}, "Did you mean 'autoattack'"),
    "ceat-attacks": ("ceat", {"attacks": ["PDG"]}, "Did you mean 'PGD'"),
    "ceat-no-attacks": ("ceat", {"attacks": []}, "attacks is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    name, given, message = BAD[case]
    X, y = points(20)
    defaults = {"surrogates": linear(1), "subset": "all"} if name == "cldl" else {}
    with pytest.raises(ValueError, match=message):
        getattr(protocols, name)(linear(0), X, y, **{**defaults, **given})


def test_bad_data():
    X, y = points(20)
    with pytest.raises(ValueError, match="estimators is empty"):
        protocols.ncen({}, X, y, eps=EPS)
    with pytest.raises(ValueError, match="got 20 and 19"):
        protocols.ncen(linear(0), X, y[:-1], eps=EPS)
    with pytest.raises(ValueError, match="outside clip_values"):
        protocols.ncen(linear(0), X + 1, y, eps=EPS)
