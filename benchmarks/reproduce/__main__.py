"""A table or figure of the papers, measured again and written beside what they print.

What a table needs is trained with the recipes and measured by the paper's protocol and by sound
attacks. Models and numbers are kept in ``--work``: a run that was killed goes on where it was,
tables share what they have in common, and the same command in several processes shares the work.
A result keeps what it was written from: on another machine ``--known`` goes on from there::

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce --paper cldl --table VIII --dry-run
    python -m benchmarks.reproduce --paper cldl --table VIII --budget 0.1 --ablations
    python -m benchmarks.reproduce --paper cldl --table VIII --epochs 30 --seeds 2 \\
        --images 500 --train-images 6000 --known benchmarks/results/reproduce/cldl_VIII.json
    python -m benchmarks.reproduce --paper ceat --figure 3 --budget 0.1
    python -m benchmarks.reproduce --paper ncen --table II --dataset fashion-mnist \\
        --network resnet20 --epochs 4 --train-images 6000 --images 500

Full work (``--budget 1``) is what the paper says. A budget scales epochs, seeds and test images,
and stands in the title; ``--epochs``, ``--seeds``, ``--images`` and ``--train-images`` are
numbers that win over it. ``--precision bfloat16`` halves the time of training on processors that
compute in it, ``--batch-size 32`` takes more steps where epochs are few; they stand there too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from robust_ensembles.exceptions import DatasetNotFoundError

from .. import _command
from . import _figures, _plan, _published, _run
from ._budget import Budget

log = _command.log


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _options()
    parsed = _command.parse(options, arguments)
    if parsed.list:
        for paper, printed in _published.PAPERS.items():
            tables, figures = _published.names(paper), _figures.numbers(paper)
            log.info("%s (%s): tables %s", paper, printed, ", ".join(tables))
            if figures:
                log.info("%s (%s): figures %s", paper, printed, ", ".join(figures))
        return
    try:
        _start(options, parsed)
    except (DatasetNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


def _start(options: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    if parsed.paper is None or (parsed.table is None) == (parsed.figure is None):
        raise ValueError("give --paper and either --table or --figure; --list names them")
    shop = _run.Workshop(parsed.work, parsed.device)
    task = _task(options, parsed)
    _run.take_over(parsed.known, task, shop)
    if parsed.dry_run:
        log.info("%s", task.title)
        _command.show(_run.dry_run(task, shop))
        return
    _run.run(task, shop, so_far=parsed.so_far)


def _task(options: argparse.ArgumentParser, parsed: argparse.Namespace) -> _run.Task:
    figure = _figures.find(parsed.paper, parsed.figure) if parsed.figure else None
    table = figure.table if figure else _published.read(parsed.paper, parsed.table)
    chosen = table.selected(parsed.dataset, parsed.network)
    names = ("epochs", "seeds", "images", "train_images", "precision", "batch_size")
    budget = Budget(parsed.budget, **{name: getattr(parsed, name) for name in names})
    parts = _plan.parts(
        chosen,
        budget,
        methods=parsed.methods,
        ablations=parsed.ablations,
        attacks=parsed.attacks,
        archive=parsed.npz,
    )
    filters = [*(parsed.dataset or ()), *(parsed.network or ())]
    name = "_".join([table.paper, table.name, *filters])
    command = _command.spelled("reproduce", options, parsed)
    return _run.Task(chosen, budget, parts, parsed.ablations, name, command, figure)


def _options() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--list", action="store_true", help="name all tables and figures")
    add("--paper", choices=list(_published.PAPERS))
    add("--table", help="its number as printed: VIII, 4")
    add("--figure", help="its number, or what it shows; instead of a table")
    add("--dataset", nargs="+", choices=list(_published.DATASETS), help="only these data sets")
    add("--network", nargs="+", help="only these networks, such as resnet20")
    add("--methods", nargs="+", help="only these rows; the others are shown as not run")
    add("--attacks", nargs="+", help="only these columns, such as PGD20 MIM CW, without AA")
    add("--ablations", action="store_true", help="rows that settle where the gains come from")
    add("--budget", type=float, default=1.0, help="part of epochs, seeds and test images")
    add("--epochs", type=int, help="epochs of every method")
    add("--seeds", type=int, help="how many seeds")
    add("--images", type=int, help="how many test images")
    add("--train-images", type=int, help="how many training images; all by default")
    add("--batch-size", type=int, help="of trainings; by default the recipes'")
    add("--precision", default="float32", choices=["float32", "bfloat16"], help="of trainings")
    add("--npz", type=Path, help="archive with the data set's images; see load_image_npz")
    add("--work", type=Path, default=Path("benchmark-models/reproduce"), help="what is kept")
    add("--known", nargs="+", type=Path, default=[], help="results (.json) to go on from")
    add("--device", default="auto")
    add("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    add("--dry-run", action="store_true", help="say what would be done and how long it takes")
    add("--so-far", action="store_true", help="write what was measured until now, and stop")
    return result


if __name__ == "__main__":
    main()
