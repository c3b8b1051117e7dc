"""One training step: the released way, ours in plain torch, and ours accelerated.

::

    python -m benchmarks.training
    python -m benchmarks.training --methods cldl gal --networks resnet20 --rounds 5
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robust_ensembles.training import Batch

from . import _command, _report
from ._cases import METHODS, NETWORKS, OwnStep, make_estimator, random_batch
from ._timing import Measurement, interleaved


@dataclass(frozen=True)
class Case:
    """What is compared.

    Parameters
    ----------
    method, network : str
    bar : float or None, default=None
        How many times faster than the released way it has to be.
    """

    method: str
    network: str
    bar: float | None = None


CASES = (
    Case("cldl", "resnet20", 3.3),
    Case("cldl", "lenet5", 2.6),
    Case("gal", "resnet20", 1.8),
    Case("ncen", "resnet20", 1.45),
    Case("adversarial", "resnet20", 1.35),
    Case("gal", "lenet5"),
    Case("ncen", "lenet5"),
    Case("adp", "resnet20"),
    Case("vanilla", "resnet20"),
    Case("vanilla", "lenet5"),
)
QUICK = tuple(Case(method, "tiny") for method in METHODS)


@dataclass(frozen=True)
class Setting:
    """How it is measured.

    Parameters
    ----------
    rounds, steps : int
        Rounds, and steps in each.
    device : str, default="cpu"
    accelerate : tuple of str, default=("none", "auto")
        Ways of ours; the names of several techniques are joined by a plus sign.
    """

    rounds: int
    steps: int
    device: str = "cpu"
    accelerate: tuple[str, ...] = ("none", "auto")


def measure(cases: Iterable[Case], setting: Setting) -> list[dict[str, Any]]:
    """One row for each case."""
    return [_row(case, _contend(case, setting), setting) for case in cases]


def _contend(case: Case, setting: Setting) -> dict[str, Measurement]:
    network, device = NETWORKS[case.network], setting.device
    own = {}
    for name in setting.accelerate:
        techniques = name.split("+") if "+" in name else name
        estimator = make_estimator(case.method, network, accelerate=techniques, device=device)
        own[name] = OwnStep(estimator, network)
    released = own[setting.accelerate[0]].released(case.method)
    runs: dict[str, Callable[[list[Batch]], Any]] = {"released": released.run}
    runs |= {name: step.run for name, step in own.items()}
    batches = [random_batch(network, seed=seed, device=device) for seed in range(setting.steps)]
    contenders = {name: functools.partial(run, batches) for name, run in runs.items()}
    return interleaved(contenders, rounds=setting.rounds)


def _row(case: Case, measured: dict[str, Measurement], setting: Setting) -> dict[str, Any]:
    network = NETWORKS[case.network]
    row: dict[str, Any] = {
        "method": case.method,
        "network": f"3 x {case.network}",
        "batch": network.batch_size,
        "released (s)": _command.rounded(measured["released"].median / setting.steps),
    }
    for name in setting.accelerate:
        median, low, high = measured[name].times_faster_than(measured["released"])
        row[f"{name} (s)"] = _command.rounded(measured[name].median / setting.steps)
        row[f"{name}: times faster"] = f"{median:.2f} ({low:.2f} to {high:.2f})"
    row["bar"] = "" if case.bar is None else case.bar
    for name, measurement in measured.items():
        row[f"{name} (MiB)"] = _command.rounded(measurement.peak_mib)
    return row


def write(rows: list[dict[str, Any]], setting: Setting) -> None:
    """Write ``results/training.json`` and ``results/training.md``."""
    _report.write(
        "training",
        "One training step against the released way",
        f"python -m benchmarks.training --rounds {setting.rounds} --steps {setting.steps} "
        f"--device {setting.device} --accelerate {' '.join(setting.accelerate)}",
        rows,
        about=(
            "Seconds of one step (forward, backward, update of the weights), median of "
            f"{setting.rounds} rounds in which all take turns, {_command.threads()}; times "
            "faster than the released way as the median (lowest to highest) ratio of a round. "
            "The released way is `benchmarks/_released_steps.py`: the same loss, gradients and "
            "update (`tests/benchmarks/test_benchmarks.py`), computed as the released trainers "
            "compute them. The other columns are the estimator's own net with that `accelerate`, "
            "formulation `released`. Mebibytes: most memory of a step beside what was there "
            "before. Adversarial: PGD-10 with the batch's statistics. Random images, Adam."
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    options = _command.parser(__doc__)
    options.add_argument("--steps", type=int, default=1, help="steps in a round")
    options.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    options.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--accelerate", nargs="+", default=["none", "auto"], help="such as vmap+cuda_graph"
    )
    parsed = _command.parse(options, arguments)
    cases = [
        case
        for case in (QUICK if parsed.quick else CASES)
        if case.method in parsed.methods and case.network in parsed.networks
    ]
    rounds = 1 if parsed.quick else parsed.rounds
    setting = Setting(rounds, parsed.steps, parsed.device, tuple(parsed.accelerate))
    rows = measure(cases, setting)
    _command.show(rows)
    if not parsed.quick:
        write(rows, setting)


if __name__ == "__main__":
    main()
