"""What every method trains and every attack makes, as digests and as a few numbers.

Only public names are used, so that the record outlives the files behind them. ::

    OMP_NUM_THREADS=1 python tests/properties/digests.py

writes `recorded_digests.json` again, which is right only after a change that is meant to change
results.
"""

import hashlib
import json
import platform
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import robust_ensembles
from robust_ensembles import CollaborativeCalibration, VanillaEnsembleClassifier, attacks
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.persistence import load, save

RECORD = Path(__file__).with_name("recorded_digests.json")

# Elsewhere the same computation is rounded differently, and a walk by signs of gradients turns
# where one of them is nearly zero: how much numbers may differ, relatively and absolutely, by the
# first word of their name. About three times what other instruction sets were seen to do.
TOLERANCES = {
    "squares": (0.002, 0.0),
    "proba": (0.03, 0.004),
    "train": (0.005, 0.005),
    "change": (0.01, 0.0005),
    "fraction": (0.0, 0.1),  # a few of the samples
}

N_TRAIN, N_TEST = 96, 48


# Data and networks


@cache
def images():
    """Training images and labels, and those to attack: 1 x 8 x 8 pixels in [0, 1]."""
    X, y = load_digits_images()
    return X[:N_TRAIN], y[:N_TRAIN], X[1000 : 1000 + N_TEST], y[1000 : 1000 + N_TEST]


def rows():
    """The same as rows of 64 features."""
    X, y, X_test, y_test = images()
    return X.reshape(len(X), -1), y, X_test.reshape(len(X_test), -1), y_test


def normalized_net(input_shape, n_classes):
    """A network with buffers, and with a layer that draws from torch's global generator."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(6 * (height // 2) * (width // 2), n_classes),
    )


# Methods

ESTIMATORS = {
    name.removesuffix("EnsembleClassifier").lower(): getattr(robust_ensembles, name)
    for name in robust_ensembles.__all__
    if name.endswith("EnsembleClassifier")
}
COMMON = {
    "n_estimators": 3,
    "max_epochs": 2,
    "batch_size": 32,
    "lr": 5e-3,
    "device": "cpu",
    "random_state": 0,
}
ATTACK = {"attack": PGD(eps=0.1, step_size=0.04, n_steps=3)}
DISTILLATION = {"eps": 0.15, "step_size": 0.05, "n_steps": 3}
OWN = {
    "adversarial": ATTACK,
    "ceat": ATTACK,
    # larger steps make rounding errors of its second derivatives grow to several per cent
    "cldl": {"lr": 1e-3},
    "dverge": DISTILLATION,
    "fasten": {"eps": 0.15, "step_size": 0.1, "eps_init": 0.05},
    "lafed": DISTILLATION,
    "trs": {"delta_init": 0.05, "delta_final": 0.1, "n_inner_steps": 2},
}
# which cannot be attacked in training; whose calibration is its own; that has no released code
UNATTACKED, CALIBRATED, UNRELEASED = {"vanilla"}, {"vanilla", "ceat"}, {"ceat"}
MODULES = {
    "mlp": (rows, {"module": "mlp", "module_params": {"hidden_sizes": (32,)}}),
    "lenet5": (images, {"module": "lenet5"}),
    "normalized": (images, {"module": normalized_net}),
}


def trained(method, module, architecture=None, **params):
    """A fitted ensemble, and what it is asked about."""
    data, usual = MODULES[module]
    X, y, X_test, _ = data()
    given = {**COMMON, **(architecture or usual), **OWN.get(method, {}), **params}
    return ESTIMATORS[method](**given).fit(X, y), X_test


def _methods():
    for method in ESTIMATORS:
        for module in ("mlp", "lenet5"):
            yield f"{method}-{module}", partial(trained, method, module)
        attack = {} if method in UNATTACKED else ATTACK
        yield f"{method}-normalized", partial(trained, method, "normalized", **attack)
        if method not in UNRELEASED:
            released = {"formulation": "released", **attack}
            yield f"{method}-released", partial(trained, method, "normalized", **released)
            if method not in UNATTACKED:
                # without layers whose statistics could differ, too
                yield f"{method}-released_mlp", partial(trained, method, "mlp", **released)
        if method not in CALIBRATED:
            calibrated = {**ATTACK, "calibration": CollaborativeCalibration()}
            yield f"{method}-calibrated", partial(trained, method, "mlp", **calibrated)
    for method in ("dverge", "fasten", "lafed"):
        yield f"{method}-pretrained", partial(trained, method, "lenet5", pretrained=1)


# What the methods have in common


def noisy(x, generator):
    """An augmentation."""
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return (x + 0.1 * noise).clamp(0, 1)


def continued():
    """One fit after another, from where it ended."""
    X, y, X_test, _ = rows()
    clf = VanillaEnsembleClassifier(**COMMON, warm_start=True)
    return clf.fit(X, y).fit(X, y), X_test


def in_parts():
    """Epoch by epoch."""
    X, y, X_test, _ = rows()
    clf = VanillaEnsembleClassifier(**COMMON)
    return clf.partial_fit(X, y, classes=np.arange(10)).partial_fit(X[:50], y[:50]), X_test


def streamed():
    """From a data set."""
    X, y, X_test, _ = rows()
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    return VanillaEnsembleClassifier(**COMMON).fit(data), X_test


def weighted():
    """Weights of samples and of classes."""
    X, y, X_test, _ = rows()
    clf = ESTIMATORS["adp"](**COMMON, **ATTACK, class_weight="balanced")
    return clf.fit(X, y, sample_weight=np.linspace(0.1, 2, len(y))), X_test


def bytes_of_pixels():
    """Pixels from 0 to 255."""
    X, y, X_test, _ = images()
    X, X_test = ((255 * pixels).astype(np.uint8) for pixels in (X, X_test))
    return VanillaEnsembleClassifier(**COMMON).fit(X, y), X_test


def from_a_file():
    """Trained on from a file."""
    X, y, X_test, _ = rows()
    clf = VanillaEnsembleClassifier(**COMMON).fit(X, y)
    with TemporaryDirectory() as folder:
        save(clf, Path(folder, "clf.safetensors"), optimizer_state=True)
        loaded = load(Path(folder, "clf.safetensors"))
    return loaded.partial_fit(X, y), X_test


COMMON_CASES = {
    "fit-from_a_file": from_a_file,
    "fit-warm_start": continued,
    "fit-partial_fit": in_parts,
    "fit-data_set": streamed,
    "fit-weights": weighted,
    "fit-uint8": bytes_of_pixels,
    "fit-augmentation": partial(trained, "gal", "lenet5", augmentation=noisy),
    "fit-held_out": partial(trained, "vanilla", "mlp", train_split=0.25),
    "fit-sgd": partial(
        trained,
        "vanilla",
        "lenet5",
        optimizer="sgd",
        optimizer_params={"momentum": 0.9},
        lr=0.05,
        lr_milestones=[1],
    ),
    "fit-mixed": partial(
        trained, "gal", "lenet5", architecture={"module": ["lenet5", "mlp", normalized_net]}
    ),
    "fit-plain_torch": partial(trained, "gal", "lenet5", accelerate="none"),
    "fit-member_attack": partial(trained, "adversarial", "normalized", attack_target="member"),
    "fit-no_box": partial(trained, "adversarial", "mlp", clip_values=None),
}
METHOD_CASES = {**dict(_methods()), **COMMON_CASES}


def method_result(make):
    """Digests and numbers of a training."""
    clf, X_test = make()
    states = [[v.detach().cpu() for v in m.state_dict().values()] for m in clf.estimators_]
    proba = clf.predict_proba(X_test)
    losses = np.array(clf.history_[:, "train_loss"], dtype=np.float64)
    return {
        "digests": {
            "weights": digest(value for state in states for value in state),
            "predict_proba": digest([proba]),
            "train_loss": digest([losses]),
        },
        "summary": {
            "squares_of_weights": [
                sum(value.double().square().sum().item() for value in state) for state in states
            ],
            "proba_class_means": proba.mean(axis=0).tolist(),
            "proba_std": [float(proba.std())],
            "proba_first": proba.ravel()[:8].tolist(),
            "train_loss": losses.tolist(),
        },
    }


# Attacks


@cache
def target(module="lenet5", random_state=0):
    """An ensemble that is attacked, or with another seed a surrogate of it."""
    X, y = load_digits_images()
    X = X if module == "lenet5" else X.reshape(len(X), -1)
    given = {"random_state": random_state, "max_epochs": 4, "lr": 2e-3}
    clf = VanillaEnsembleClassifier(**{**COMMON, **MODULES[module][1], **given})
    return clf.fit(X[:400], y[:400])


def sign_step(module, x, y):
    """What stands for another library's attack."""
    x = x.detach().requires_grad_()
    loss = nn.functional.cross_entropy(module(x), y)
    return x.detach() + 0.1 * torch.autograd.grad(loss, x)[0].sign()


LINF = {"eps": 0.12, "clip_values": (0.0, 1.0)}
L2 = {**LINF, "norm": "l2", "eps": 0.8}
L1 = {**LINF, "norm": "l1", "eps": 2.0}


def _attacks():
    """The attacks by name; those that hold a fitted ensemble are made when they are asked for."""
    stepped = ("BIM", "MIM", "PGD", "CW", "APGD", "TargetedAPGD", "FAB", "DeepFool", "MORA")
    for name in ("FGSM", *stepped, "Square", "UniformNoise"):
        kind = getattr(attacks, name)
        few = {"n_steps": 10 if name in ("APGD", "MORA") else 5} if name in stepped else {}
        few |= {"n_target_classes": 3} if name in ("TargetedAPGD", "FAB", "DeepFool") else {}
        few |= {"n_queries": 40} if name == "Square" else {}
        yield name, partial(kind, **LINF, **few)
        yield f"{name}-l2", partial(kind, **L2, **few)
    yield "APGD-l1", partial(attacks.APGD, **L1, n_steps=10)
    yield "TargetedAPGD-l1", partial(attacks.TargetedAPGD, **L1, n_steps=10, n_target_classes=2)
    yield "APGD-restarts", partial(attacks.APGD, **LINF, n_steps=6, n_restarts=2, loss="dlr")
    yield "PGD-targeted", partial(PGD, **LINF, n_steps=5, targeted=True)
    yield "PGD-restarts", partial(PGD, **LINF, n_steps=3, n_restarts=3)
    yield "PGD-batches", partial(PGD, **LINF, n_steps=3, batch_size=7)
    for loss in ("cross_entropy", "cw_margin", "dlr"):
        yield f"PGD-{loss}", partial(PGD, **LINF, n_steps=3, loss=loss)
    for aggregation in ("mean_logits", 1):
        yield f"PGD-{aggregation}", partial(PGD, **LINF, n_steps=3, aggregation=aggregation)
    yield (
        "CarliniWagnerL2",
        partial(
            attacks.CarliniWagnerL2, **L2, n_steps=20, n_searches=2, initial_const=10.0, lr=0.05
        ),
    )
    yield "AutoAttack", partial(attacks.AutoAttack, **LINF, n_queries=10)
    yield "AutoAttack-l2", partial(attacks.AutoAttack, **L2, n_queries=10)
    yield "EnsembleAutoAttack", partial(attacks.EnsembleAutoAttack, **LINF, n_queries=10)
    yield "External", partial(attacks.External, **LINF, function=sign_step)
    yield "WorstCase", _worst_case
    yield "Transfer", _transfer


def _worst_case():
    return attacks.WorstCase([attacks.FGSM(**LINF), PGD(**L2, n_steps=3)])


def _transfer():
    walks = [PGD(**LINF, n_steps=5), attacks.MIM(**LINF, n_steps=5)]
    return attacks.Transfer([target(random_state=seed) for seed in (1, 2)], walks)


ATTACK_CASES = dict(_attacks())
# whose numbers of steps are theirs: hundreds, for which only small networks are quick
LONG = (attacks.AutoAttack, attacks.EnsembleAutoAttack)


def attack_result(make):
    """Digests and numbers of what an attack makes, stopped at the first success and not."""
    attack = make()
    module = "mlp" if isinstance(attack, LONG) else "lenet5"
    clf, (_, _, X, y) = target(module), MODULES[module][0]()
    asked = (y + 1) % 10 if attack.targeted else y
    made = {"stopped": attack.generate(clf, X, asked)}
    if isinstance(attack, attacks.BoundedAttack):
        tensors = torch.from_numpy(X), torch.from_numpy(asked)
        made["unstopped"] = attack(clf.module_, *tensors, stop_when_broken=False).numpy()
    return {
        "digests": {name: digest([X_adv]) for name, X_adv in made.items()},
        "summary": {
            **{f"change_{name}": [float(abs(v - X).mean())] for name, v in made.items()},
            **{
                f"fraction_broken_{name}": [float((clf.predict(v) != y).mean())]
                for name, v in made.items()
            },
        },
    }


# Recording and comparing


def digest(arrays):
    """SHA-256 of arrays with their types and shapes, in their order."""
    result = hashlib.sha256()
    for array in arrays:
        value = np.ascontiguousarray(array)
        result.update(f"{value.dtype.str}{np.shape(array)}".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def environment():
    """What decides how the same computation is rounded."""
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _processor():
    """Name, family, model and stepping of the first processor, where they can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    fields = {key.strip(): value.strip() for key, _, value in (li.partition(":") for li in lines)}
    names = ("model name", "cpu family", "model", "stepping")
    return " / ".join(fields[name] for name in names if name in fields)


@contextmanager
def one_thread():
    """More threads would add up sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def result(name):
    """What a case computes here and now."""
    with one_thread():
        if name in METHOD_CASES:
            return method_result(METHOD_CASES[name])
        return attack_result(ATTACK_CASES[name])


def disagreements(recorded, present, *, exact):
    """How two results differ: to the bit, or else by more than another processor would explain."""
    return _other_digests(recorded, present) if exact else _other_numbers(recorded, present)


def _other_digests(recorded, present):
    old, new = recorded["digests"], present["digests"]
    return [
        f"{name}: other bits than recorded"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _other_numbers(recorded, present):
    old, new = recorded["summary"], present["summary"]
    return [
        f"{name}: {new.get(name)}, recorded {old.get(name)}"
        for name in {**old, **new}
        if name not in old or name not in new or not _near(name, old[name], new[name])
    ]


def _near(name, old, new):
    if len(old) != len(new):
        return False
    relative, absolute = TOLERANCES[name.partition("_")[0]]
    return bool(np.allclose(new, old, rtol=relative, atol=absolute))


def recorded():
    """What was recorded: the environment, and the results by the names of the cases."""
    return json.loads(RECORD.read_text())


def record(path=RECORD):
    """Write all of it again."""
    cases = {name: _rounded(result(name)) for name in (*METHOD_CASES, *ATTACK_CASES)}
    payload = {"environment": environment(), "cases": cases}
    path.write_text(json.dumps(payload, indent=1) + "\n")


def _rounded(case):
    summary = {name: [float(f"{v:.6g}") for v in vs] for name, vs in case["summary"].items()}
    return {**case, "summary": summary}


if __name__ == "__main__":
    record()
