"""Attacks on ensembles, side by side with other libraries: time, memory, and who is robust.

::

    python -m benchmarks.attacks
    python -m benchmarks.attacks --models vanilla.safetensors adversarial.safetensors --images 512

Equal mathematics: the same radius, steps, step size and random start (of other random numbers).
Without ``--models``, small ensembles are trained on Fashion-MNIST first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_ensembles import AdversarialEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import MIM, PGD, Attack, AutoAttack, is_broken
from robust_ensembles.datasets import load_fashion_mnist
from robust_ensembles.persistence import load

from . import _command, _report, _rivals
from ._rivals import Maker, Setting
from ._timing import Measurement, interleaved

OURS = "robust_ensembles"
EPS = 0.1
# of defences that --models names or that are trained here: attack, and how many times faster than
# the rival the attack has to be on them
BARS: dict[str, dict[tuple[str, str], float]] = {
    "vanilla": {
        ("PGD-20", "torchattacks"): 3.5,
        ("MIM-20", "torchattacks"): 3.5,
        ("AutoAttack", "pyautoattack"): 4.0,
    },
    "adversarial": {
        ("PGD-20", "torchattacks"): 2.0,
        ("MIM-20", "torchattacks"): 2.0,
        ("AutoAttack", "pyautoattack"): 1.6,
    },
}
NETWORKS: dict[str, dict[str, Any]] = {"lenet5": {"embedding_size": 64}, "resnet20": {}}


def trained(n_images: int, epochs: int) -> Iterator[tuple[str, nn.Module]]:
    """A weak and a robust ensemble of each kind of network, on so many training images."""
    X, y = (part[:n_images] for part in load_fashion_mnist("train"))
    defences: dict[str, Any] = {
        "vanilla": VanillaEnsembleClassifier,
        "adversarial": partial(
            AdversarialEnsembleClassifier, attack=PGD(eps=EPS, n_steps=5, step_size=EPS / 3)
        ),
    }
    for network, params in NETWORKS.items():
        for defence, make in defences.items():
            model = make(network, module_params=params, max_epochs=epochs, random_state=0)
            yield f"{defence}-{network}", model.fit(X, y).as_module()


def loaded(paths: Sequence[Path]) -> Iterator[tuple[str, nn.Module]]:
    """Fitted estimators of files."""
    for path in paths:
        yield path.stem, load(path).as_module()


def contests(setting: Setting) -> dict[str, tuple[Attack, dict[str, Maker]]]:
    """Our attack and those of the rivals, under its name."""
    shared: dict[str, Any] = {"eps": setting.eps, "batch_size": setting.batch_size}
    steps: dict[str, Any] = {"n_steps": setting.n_steps, "step_size": setting.step_size}
    return {
        f"PGD-{setting.n_steps}": (PGD(**shared, **steps), _rivals.pgd(setting)),
        f"MIM-{setting.n_steps}": (MIM(**shared, **steps), _rivals.mim(setting)),
        "AutoAttack": (
            AutoAttack(n_queries=setting.n_queries, **shared),
            _rivals.autoattack(setting),
        ),
    }


def contest(
    attack: Attack,
    rivals: Mapping[str, Maker],
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    rounds: int,
) -> list[dict[str, Any]]:
    """One row for each contender, ours first."""
    makers: dict[str, Maker] = {OURS: attack, **rivals}
    made: dict[str, Tensor] = {}

    def run(name: str) -> None:
        made[name] = makers[name](module, x, y)

    # one round warms up; where a round takes minutes, the one that memory is measured in
    measured = interleaved(
        {name: partial(run, name) for name in makers}, rounds=rounds, warm_up=int(rounds > 1)
    )
    broken = {name: is_broken(module, made[name], y) for name in makers}
    return [_row(name, measured, broken) for name in makers]


def _row(
    name: str, measured: Mapping[str, Measurement], broken: Mapping[str, Tensor]
) -> dict[str, Any]:
    median, low, high = measured[OURS].times_faster_than(measured[name])
    return {
        "contender": name,
        "seconds": _command.rounded(measured[name].median),
        "we are faster by": _command.rounded(median),
        "range": f"{low:.2f} - {high:.2f}",
        "peak MiB": _command.rounded(measured[name].peak_mib),
        "robust images": int((~broken[name]).sum()),
        "only we break": int((broken[OURS] & ~broken[name]).sum()),
        "only they break": int((broken[name] & ~broken[OURS]).sum()),
    }


def measure(
    name: str, module: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one ensemble."""
    setting = Setting(
        eps=options.eps,
        step_size=options.eps / 4,
        batch_size=options.batch_size,
        n_queries=options.queries,
    )
    bars = BARS.get(name.split("-")[0], {})
    rows: list[dict[str, Any]] = []
    for title, (attack, rivals) in contests(setting).items():
        if title.split("-")[0].lower() not in options.attacks:
            continue
        cascade = title == "AutoAttack"
        number = options.autoattack_images if cascade else options.images
        rounds = options.autoattack_rounds if cascade else options.rounds
        for row in contest(attack, rivals, module, images[:number], labels[:number], rounds):
            head = {"ensemble": name, "attack": title, "images": len(images[:number])}
            rows.append({**head, **row, "bar": bars.get((title, row["contender"]), "")})
        _command.show(rows[-1 - len(rivals) :])
    return rows


def _options() -> argparse.ArgumentParser:
    options = _command.parser(__doc__)
    options.add_argument("--images", type=int, default=512, help="test images")
    options.add_argument("--models", type=Path, nargs="+", help="files of fitted estimators")
    options.add_argument("--eps", type=float, default=EPS, help="radius in the maximum norm")
    kinds = ["pgd", "mim", "autoattack"]
    options.add_argument("--attacks", nargs="+", choices=kinds, default=kinds)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--queries", type=int, default=1000, help="of Square in AutoAttack")
    options.add_argument("--autoattack-images", type=int, default=256)
    options.add_argument("--autoattack-rounds", type=int, default=1)
    options.add_argument("--train-images", type=int, default=3000)
    options.add_argument("--train-epochs", type=int, default=3)
    options.add_argument("--about", default="", help="what the models are, for the report")
    options.add_argument("--name", default="attacks", help="of the files that are written")
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark; the rows that are written, or with ``--quick`` only shown."""
    options = _command.parse(_options(), arguments)
    # gradients of well-fitted samples are subnormal in float32, which a CPU computes slowly: for
    # all contenders alike
    torch.set_flush_denormal(True)
    if options.quick:
        options.images, options.rounds, options.queries, options.autoattack_images = 32, 1, 20, 8
        options.train_images, options.train_epochs = 256, 1
    X, y = load_fashion_mnist("test")
    number = max(options.images, options.autoattack_images)
    x = torch.from_numpy(X[:number]).float() / 255
    labels = torch.from_numpy(y[:number]).long()
    models = (
        loaded(options.models)
        if options.models
        else trained(options.train_images, options.train_epochs)
    )
    rows = [row for name, module in models for row in measure(name, module, x, labels, options)]
    if not options.quick:
        _write(rows, options)
    return rows


def _write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    _report.write(
        options.name,
        f"Attacks on ensembles of three at eps {options.eps:g}, side by side",
        _command.spelled("attacks", _options(), options),
        rows,
        setting=f"Fashion-MNIST, maximum norm, eps {options.eps}, 20 steps of eps / 4, random "
        f"start of PGD, AutoAttack standard with {options.queries} queries of Square, batches of "
        f"{options.batch_size}, {_command.threads()}, {options.rounds} "
        f"rounds in turns (AutoAttack: {options.autoattack_rounds}); ratios are medians of the "
        "rounds' own.",
        about=options.about,
        columns="Robust images are correct before and after the attack by a pass of the module "
        "itself; what only one side breaks is compared image by image.",
    )


if __name__ == "__main__":
    main()
