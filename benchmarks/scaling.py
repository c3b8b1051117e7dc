"""How the cost of a training step grows: in members, samples, pixels, attack steps, batch size.

::

    python -m benchmarks.scaling
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.base import clone

from . import _command, _plots, _report
from ._cases import NETWORKS, Network, OwnStep, make_estimator, random_batch, random_images
from ._timing import interleaved

Run = Callable[[], Any]


@dataclass(frozen=True)
class Axis:
    """One thing to be varied.

    Parameters
    ----------
    label : str
        Of the horizontal axis.
    values, quick : tuple of int
    methods : tuple of str
    make : callable
        From a network, a method and a value to what is timed.
    least : mapping of str to int, default={}
        The smallest value that a method takes.
    """

    label: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    methods: tuple[str, ...]
    make: Callable[[Network, str, int], Run]
    least: Mapping[str, int] = field(default_factory=dict)


def _step(method: str, network: Network, **params: Any) -> Run:
    own = OwnStep(make_estimator(method, network, **params), network)
    batch = random_batch(network)
    return lambda: own.run([batch])


def _members(network: Network, method: str, value: int) -> Run:
    return _step(method, network, n_estimators=value, n_steps=3)


def _samples(network: Network, method: str, value: int) -> Run:
    X, y = random_images(network, value)
    estimator = make_estimator(method, network, n_steps=3)
    return lambda: clone(estimator).fit(X, y)


def _pixels(network: Network, method: str, value: int) -> Run:
    side = round(value**0.5)
    return _step(method, replace(network, input_shape=(3, side, side)), n_steps=3)


def _attack_steps(network: Network, method: str, value: int) -> Run:
    return _step(method, network, n_steps=value)


def _batch_size(network: Network, method: str, value: int) -> Run:
    return _step(method, replace(network, batch_size=value), n_steps=3)


_ALL = ("vanilla", "adversarial", "gal", "cldl")
AXES = (
    Axis("members", (1, 2, 3, 5, 8), (2, 3), _ALL, _members, {"gal": 2}),
    Axis("training samples (fit)", (128, 256, 512, 1024), (20, 40), ("vanilla", "gal"), _samples),
    Axis("pixels of an image", (64, 256, 1024, 4096), (64, 256), _ALL, _pixels),
    Axis("attack steps", (1, 3, 10, 30), (1, 2), ("adversarial",), _attack_steps),
    Axis("batch size", (16, 32, 64, 128, 256), (4, 8), _ALL, _batch_size),
)


def measure(axes: Sequence[Axis], network: Network, *, rounds: int) -> list[dict[str, Any]]:
    """One row for each point."""
    rows = []
    for axis in axes:
        for method in axis.methods:
            values = [value for value in axis.values if value >= axis.least.get(method, 0)]
            runs = {str(value): axis.make(network, method, value) for value in values}
            for value, measured in interleaved(runs, rounds=rounds).items():
                rows.append(
                    {
                        "axis": axis.label,
                        "method": method,
                        "value": int(value),
                        "seconds": measured.median,
                        "MiB": measured.peak_mib,
                    }
                )
    return rows


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each line: the exponents of time and memory, by a straight line in logarithms."""
    table = []
    for axis, method in dict.fromkeys((row["axis"], row["method"]) for row in rows):
        line = [row for row in rows if (row["axis"], row["method"]) == (axis, method)]
        table.append(
            {
                "cost against": axis,
                "method": method,
                "from": line[0]["value"],
                "to": line[-1]["value"],
                "seconds": f"{line[0]['seconds']:.3g} to {line[-1]['seconds']:.3g}",
                "slope of time": exponent(line, "seconds"),
                "slope of memory": exponent(line, "MiB"),
            }
        )
    return table


def exponent(line: list[dict[str, Any]], quantity: str) -> float | None:
    """Slope of a straight line through the points in logarithms; 1 for linear growth."""
    values = [row[quantity] for row in line]
    if len(values) < 2 or any(value is None or value <= 0 for value in values):
        return None
    slope = np.polyfit(np.log([row["value"] for row in line]), np.log(values), 1)[0]
    return round(float(slope), 2)


def write(rows: list[dict[str, Any]], *, rounds: int) -> None:
    """Write ``results/scaling.json``, ``.md`` and ``.png``."""
    _report.write(
        "scaling",
        "How the cost of training grows",
        f"python -m benchmarks.scaling --rounds {rounds}",
        slopes(rows),
        points=rows,
        about=(
            "![cost against members, samples, pixels, attack steps and batch size](scaling.png)"
            "\n\nExponents of time and of peak memory by a straight line through the logarithms: "
            "1 is linear growth, less is a fixed cost that is spread over more. One training "
            'step of ResNet-8 members (16 channels) under `accelerate="auto"`, and of `fit` '
            "with one epoch where the axis is samples; what is not varied is 3 members, 16 x 16 "
            "pixels, batch 32, and 3 attack steps. Median of "
            f"{rounds} rounds in which the points of a line take turns, {_command.threads()}. "
            "Memory is what a step takes at most beside what was there before."
        ),
    )
    _plots.scaling(rows, _report.RESULTS / "scaling.png", exponent)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table and the picture."""
    options = _command.parser(__doc__)
    options.set_defaults(rounds=5)
    parsed = _command.parse(options, arguments)
    axes = [replace(axis, values=axis.quick) for axis in AXES] if parsed.quick else AXES
    network = NETWORKS["tiny" if parsed.quick else "resnet8"]
    rows = measure(axes, network, rounds=1 if parsed.quick else parsed.rounds)
    _command.show(slopes(rows))
    if not parsed.quick:
        write(rows, rounds=parsed.rounds)


if __name__ == "__main__":
    main()
