"""Trainings killed at random moments and resumed, until they end: are the weights the same?

Each method is trained without checkpoints once. Then it is trained with them, killed by SIGKILL
(or another signal) at a random moment, resumed, killed again, until it ends; its final weights
must be those of the first training, to the bit, and no checkpoint may be unreadable. So it goes on
until each method has had its share of the kills::

    python -m benchmarks.faults --kills 1000
    python -m benchmarks.faults --kills 20 --methods fasten cldl --signal TERM
    python -m benchmarks.faults --kills 50 --write  # into benchmarks/results

Processes are forked, so that an attempt costs no import.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _command, _report
from robust_ensembles import recipes
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.training import GaussianNoise, RandomCrop

log = logging.getLogger(__name__)

# of one training, after which it is left to end
MOST_KILLS = 5
DISTILLED: dict[str, Any] = {"pretrained": 2, "n_steps": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "adversarial": {"attack": PGD(eps=0.05, n_steps=2)},
    "ceat": {"attack": PGD(eps=0.05, n_steps=2)},
    "trs": {"n_inner_steps": 2, "coeff": 0.5},
    "dverge": DISTILLED,
    "lafed": DISTILLED,
    "fasten": DISTILLED,
}


class SmallConvolutional(nn.Sequential):
    """Everything that has a state or draws random numbers: BatchNorm, dropout, convolutions."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(144, n_classes),
        )


@dataclass
class Tally:
    """What happened to one method."""

    kills: int = 0
    kills_while_writing: int = 0
    trainings: int = 0
    different: int = 0
    failed: int = 0


def estimator(method: str, checkpoint_dir: Path | None) -> Any:
    """A method whose training takes about a second."""
    return recipes.METHODS[method](
        module=SmallConvolutional,
        max_epochs=6,
        batch_size=32,
        lr=0.01,
        lr_milestones=(3,),
        augmentation=[RandomCrop(1), GaussianNoise(0.1)],
        train_split=0.2,
        device="cpu",
        random_state=0,
        checkpoint_dir=checkpoint_dir,
        **OPTIONS.get(method, {}),
    )


def train(method: str, checkpoint_dir: Path | None, result: Path) -> None:
    """Train, or go on, and save what was learned; in a process of its own."""
    torch.set_num_threads(1)
    # a checkpoint that is skipped: none may be
    warnings.filterwarnings("error", message=".*is skipped")
    X, y = load_digits_images()
    fitted = estimator(method, checkpoint_dir).fit(X[:200], y[:200])
    modules = {"module": fitted.module_}
    if fitted.net_.has_auxiliary_:
        modules["auxiliary"] = fitted.net_.auxiliary_
    torch.save({name: module.state_dict() for name, module in modules.items()}, result)


def start(*args: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=train, args=args)
    process.start()
    return process


def same(first: Path, second: Path) -> bool:
    states = [torch.load(path, weights_only=True) for path in (first, second)]
    tensors: list[dict[tuple[str, str], Tensor]] = [
        {(m, n): tensor for m, state in found.items() for n, tensor in state.items()}
        for found in states
    ]
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items()
    )


COUNTS = [field.name for field in fields(Tally)]


class Campaign:
    """The trainings of one method, and the one that was left alone."""

    def __init__(
        self, method: str, folder: Path, number: signal.Signals, draw: random.Random
    ) -> None:
        self.method, self.signal, self.draw = method, number, draw
        self.folder = folder / method
        self.folder.mkdir()
        self.tally = Tally()
        self.expected = self.folder / "expected.pt"
        begun = time.perf_counter()
        process = start(method, None, self.expected)
        process.join()
        self.seconds = time.perf_counter() - begun
        if process.exitcode:
            raise RuntimeError(f"{method} cannot be trained at all")

    def run(self, most: int) -> None:
        """One training, killed until it ends or was killed so many times."""
        checkpoints = self.folder / f"checkpoints-{self.tally.trainings}"
        found = self.folder / "found.pt"
        found.unlink(missing_ok=True)
        kills = 0
        while True:
            process = start(self.method, checkpoints, found)
            if kills < most:
                process.join(self.draw.uniform(0, 0.6 * self.seconds))
            else:
                process.join()
            if process.exitcode is None:
                kills += self._kill(process, checkpoints)
            if process.exitcode == 0:
                break
            if process.exitcode not in (-self.signal, 128 + self.signal):
                log.error("%s ended with status %s", self.method, process.exitcode)
                self.tally.failed += 1
                break
        self.tally.trainings += 1
        self.tally.kills += kills
        if process.exitcode == 0 and not same(self.expected, found):
            log.error("%s: the weights differ; see %s", self.method, checkpoints)
            self.tally.different += 1

    def _kill(self, process: Any, checkpoints: Path) -> bool:
        """Kill a process; false if it had ended before."""
        with_signal = {signal.SIGKILL: process.kill, signal.SIGTERM: process.terminate}
        with_signal[self.signal]()
        process.join()
        killed: bool = process.exitcode in (-self.signal, 128 + self.signal)
        self.tally.kills_while_writing += killed and any(checkpoints.rglob(".epoch-*.tmp"))
        return killed


def write(rows: list[dict[str, Any]], command: str) -> None:
    """Write ``results/faults.json`` and ``results/faults.md``."""
    _report.write(
        "faults",
        "Trainings killed at random moments and resumed",
        command,
        rows,
        about=(
            "Kills: how often a training of the method was ended at a random moment, and how often "
            "of these while a checkpoint was being written. After each the training was called "
            "again, until it ended. Different: trainings whose final weights (buffers, and what is "
            "trained beside the members, included) were not, to the bit, those of a training that "
            "was left alone. Failed: trainings that ended otherwise, such as by a checkpoint that "
            "could not be read. On the CPU, one thread; 200 images of digits, 6 epochs, small "
            "convolutional members with BatchNorm and dropout, augmentation with noise."
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many in all")
    parser.add_argument("--methods", nargs="+", choices=recipes.METHODS, default=recipes.METHODS)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary one")
    parser.add_argument("--write", action="store_true", help="results/faults.json and faults.md")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("robust_ensembles").setLevel(logging.WARNING)
    draw, number = random.Random(args.seed), signal.Signals[f"SIG{args.signal}"]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        campaigns = [Campaign(method, Path(folder), number, draw) for method in args.methods]
        share = math.ceil(args.kills / len(campaigns))
        for campaign in campaigns:
            while campaign.tally.kills < share:
                campaign.run(min(MOST_KILLS, share - campaign.tally.kills))
    tallies = {campaign.method: asdict(campaign.tally) for campaign in campaigns}
    rows = [{"method": method, **tally} for method, tally in tallies.items()]
    rows.append(
        {"method": "all", **{name: sum(t[name] for t in tallies.values()) for name in COUNTS}}
    )
    _command.show(rows)
    if args.write:
        write(rows, _command.spelled("faults", parser, args))
    sys.exit(any(tally["different"] or tally["failed"] for tally in tallies.values()))


if __name__ == "__main__":
    main()
