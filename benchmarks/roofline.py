"""How far a training step is from what the machine can do: arithmetic, bytes and operations.

::

    python -m benchmarks.roofline
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from robust_ensembles.training import Batch

from . import _command, _report
from ._cases import NETWORKS, OwnStep, make_estimator, random_batch
from ._timing import interleaved

# one step for each batch
Run = Callable[[Sequence[Batch]], Any]
METHODS = ("cldl", "gal", "adversarial")
# these make a tensor without touching what is in it
_WITHOUT_TRAFFIC = ("aten::empty", "aten::new_empty")


class Counts(NamedTuple):
    """Floating point operations, bytes and dispatched operations."""

    flops: int
    bytes: int
    operations: int


class OperationCounter(TorchDispatchMode):
    """Counts dispatched operations, their arithmetic, and the bytes that they read and write.

    As if every operand came from memory and every result went there: what a cache keeps is
    counted too, and views are free. Arithmetic is that of convolutions and matrix products, by
    torch's formulas (its own `FlopCounterMode` cannot follow gradients by a leaf).
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if not func.is_view and not func.name().startswith(_WITHOUT_TRAFFIC):
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True)
class Machine:
    """What the processor reaches: floating point operations and bytes per second."""

    flops: float
    bandwidth: float

    @classmethod
    def measure(cls, *, size: int = 2048, mebibytes: int = 512, repeats: int = 9) -> Machine:
        """By a product of square float32 matrices, and by copying a large tensor."""
        a, b = torch.rand(size, size), torch.rand(size, size)
        source = torch.rand(mebibytes * 2**18)
        target = torch.empty_like(source)
        product = _median_seconds(lambda: a @ b, repeats)
        copy = _median_seconds(lambda: target.copy_(source), repeats)
        return cls(2 * size**3 / product, 2 * source.nbytes / copy)


def _median_seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def count(run: Callable[[], Any]) -> Counts:
    """What a run makes torch do."""
    with OperationCounter() as counter:
        run()
    return Counts(counter.flops, counter.bytes, counter.operations)


def count_step(run: Run, batch: Batch) -> Counts:
    """What one more step makes torch do, apart from what is done once for any number of steps."""
    one, two = (count(functools.partial(run, [batch] * n)) for n in (1, 2))
    return Counts(*(b - a for a, b in zip(one, two, strict=True)))


def measure(
    methods: Sequence[str], network_name: str, machine: Machine, *, rounds: int
) -> list[dict[str, Any]]:
    """Rows of the released way and of ours without and with acceleration, for each method."""
    network = NETWORKS[network_name]
    batch = random_batch(network)
    rows = []
    for method in methods:
        own = {
            name: OwnStep(make_estimator(method, network, accelerate=name), network)
            for name in ("none", "auto")
        }
        runs: dict[str, Run] = {"released": own["none"].released(method).run}
        runs |= {name: step.run for name, step in own.items()}
        measured = interleaved(
            {way: functools.partial(run, [batch]) for way, run in runs.items()}, rounds=rounds
        )
        for way, run in runs.items():
            counts = count_step(run, batch)
            rows.append(_row(method, way, counts, measured[way].median, machine))
    return rows


def _row(
    method: str, way: str, counted: Counts, seconds: float, machine: Machine
) -> dict[str, Any]:
    arithmetic = counted.flops / machine.flops
    memory = counted.bytes / machine.bandwidth
    return {
        "method": method,
        "way": way,
        "GFLOP": _command.rounded(counted.flops / 1e9),
        "GB, counted": _command.rounded(counted.bytes / 1e9),
        "ATen operations": counted.operations,
        "arithmetic floor (s)": _command.rounded(arithmetic),
        "memory floor (s)": _command.rounded(memory),
        "measured (s)": _command.rounded(seconds),
        "times the higher floor": _command.rounded(seconds / max(arithmetic, memory)),
    }


def write(rows: list[dict[str, Any]], machine: Machine, *, rounds: int) -> None:
    """Write ``results/roofline.json`` and ``results/roofline.md``."""
    _report.write(
        "roofline",
        "Training steps of 3 ResNet-20 against the machine's floor",
        f"python -m benchmarks.roofline --rounds {rounds}",
        rows,
        machine={"GFLOP/s": machine.flops / 1e9, "GB/s": machine.bandwidth / 1e9},
        about=(
            f"One step of 64 images of 3 x 32 x 32, {_command.threads()}, median of {rounds} "
            f"rounds. The machine reaches {machine.flops / 1e9:.0f} GFLOP/s in a product of "
            f"2048 x 2048 float32 matrices and {machine.bandwidth / 1e9:.1f} GB/s, read and "
            "written together, in a copy of 512 MiB. Floors: the counted operations at that "
            "speed, and the counted bytes at that bandwidth. GFLOP are those of convolutions and "
            "matrix products (`torch.utils.flop_counter`). Bytes are the sizes of the operands "
            "and results of every dispatched operation, views apart; what a cache keeps is "
            "counted too, so a step may beat this memory floor. `none` and `auto` are ours with "
            "that `accelerate`. No GPU was at hand: figures for CUDA are missing."
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parsed = _command.parse(_command.parser(__doc__), arguments)
    if parsed.quick:
        machine = Machine.measure(size=256, mebibytes=8, repeats=3)
        rows = measure(METHODS, "tiny", machine, rounds=1)
    else:
        machine = Machine.measure()
        rows = measure(METHODS, "resnet20", machine, rounds=parsed.rounds)
    _command.show(rows)
    if not parsed.quick:
        write(rows, machine, rounds=parsed.rounds)


if __name__ == "__main__":
    main()
