"""What an estimator costs around its training step: `fit` against the same steps in a bare loop.

::

    python -m benchmarks.overhead
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.base import clone
from torch import nn

from robust_ensembles.speed import accelerated
from robust_ensembles.training import Batch, EnsembleDataset, TrainingStep

from . import _command, _report
from ._cases import NETWORKS, OwnStep, make_estimator, random_images
from ._timing import Measurement, interleaved

BAR = 1.1


@dataclass(frozen=True)
class Case:
    """What is trained, and for how many steps."""

    method: str
    network: str
    n_steps: int


CASES = (
    Case("vanilla", "lenet5", 50),
    Case("gal", "lenet5", 25),
    Case("vanilla", "resnet20", 10),
    Case("gal", "resnet20", 5),
)
QUICK = (Case("vanilla", "tiny", 3), Case("gal", "tiny", 3))


def measure(cases: Iterable[Case], *, rounds: int) -> list[dict[str, Any]]:
    """One row for each case."""
    return [_row(case, _contend(case, rounds)) for case in cases]


def _contend(case: Case, rounds: int) -> dict[str, Measurement]:
    network = NETWORKS[case.network]
    X, y = random_images(network, case.n_steps * network.batch_size)
    estimator = make_estimator(case.method, network)
    own = OwnStep(clone(estimator), network)
    batches = list(own.net.get_iterator(EnsembleDataset(X, y), training=True))
    return interleaved(
        {"fit": lambda: clone(estimator).fit(X, y), "loop": lambda: bare_loop(own, batches)},
        rounds=rounds,
    )


def bare_loop(own: OwnStep, batches: Sequence[Batch]) -> nn.Module:
    """The estimator's steps on new networks: no data, history, meter or copies of weights.

    Parameters
    ----------
    own : OwnStep
        Its networks are copied, its objective and accelerations used.
    batches : sequence of Batch

    Returns
    -------
    module : nn.Module
        The trained ensemble.
    """
    net, objective = own.net, own.estimator._objective
    module = copy.deepcopy(net.module_)
    auxiliary = copy.deepcopy(net.auxiliary_) if net.has_auxiliary_ else None
    modules = [module, *([] if auxiliary is None else [auxiliary])]
    parameters = [parameter for owner in modules for parameter in owner.parameters()]
    optimizer = type(net.optimizer_)(parameters, **net.optimizer_.defaults)
    module.train()
    with accelerated(net.techniques, modules, optimizer):
        for number, batch in enumerate(batches):
            optimizer.zero_grad()
            step = TrainingStep(module, auxiliary, batch, net.clip_values, seed=number)
            torch.stack(list(objective(step).values())).sum().backward(inputs=parameters)
            optimizer.step()
            step.commit()
    return module


def _row(case: Case, measured: dict[str, Measurement]) -> dict[str, Any]:
    fit, loop = measured["fit"], measured["loop"]
    median, low, high = loop.times_faster_than(fit)
    return {
        "method": case.method,
        "network": f"3 x {case.network}",
        "batch": NETWORKS[case.network].batch_size,
        "steps": case.n_steps,
        "fit (s)": _command.rounded(fit.median),
        "bare loop (s)": _command.rounded(loop.median),
        "fit / loop": f"{median:.3f} ({low:.3f} to {high:.3f})",
        "bar": BAR,
    }


def write(rows: list[dict[str, Any]], *, rounds: int) -> None:
    """Write ``results/overhead.json`` and ``results/overhead.md``."""
    _report.write(
        "overhead",
        "`fit` against its bare training steps",
        f"python -m benchmarks.overhead --rounds {rounds}",
        rows,
        about=(
            f"Seconds, median of {rounds} rounds in which both take turns, "
            f"{_command.threads()}. `fit` is all of it, on new networks: checks of X and y, "
            "building the members, one epoch of skorch's loop with its history, the meter of "
            "loss terms, batches drawn from the array, and the copy of the last good weights. "
            "The bare loop runs the same objective, backward pass and optimizer, with the same "
            "accelerations, on copies of the networks, over batches that lie ready. One short "
            "epoch is the dearest case: what `fit` does once is spread over few steps."
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parsed = _command.parse(_command.parser(__doc__), arguments)
    rounds = 1 if parsed.quick else parsed.rounds
    rows = measure(QUICK if parsed.quick else CASES, rounds=rounds)
    _command.show(rows)
    if not parsed.quick:
        write(rows, rounds=rounds)


if __name__ == "__main__":
    main()
