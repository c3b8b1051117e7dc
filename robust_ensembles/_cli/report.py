"""``report``: several models under several attacks, and whether the numbers can be trusted."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._system import write_whole
from .common import add_common, add_data, add_threat, check_outputs, say, settle_threat
from .evaluate import measure

DESCRIPTION = """\
Compare trained ensembles under attacks, with sanity checks of the numbers.

Beside the robust accuracies stand findings: gradients that vanish, weaker attacks that do better
than stronger ones, transferred examples that break what gradients leave, and others. The report
is kept in FILE after each measurement: interrupted, the same command goes on from there, and with
more models or attacks it measures only what is missing.
The exit status is 1 if an attack could not be run.
"""
EXAMPLES = """\
examples:
  {prog} report ceat.safetensors vanilla.safetensors data.npz --eps 8/255 \\
      --attacks fgsm pgd20 mora autoattack --path report.json --markdown report.md

  # the part that training with seed 0 held out, 200 of its images, in the L2 norm
  {prog} report digits.safetensors digits --test-size 0.2 --samples 200 --norm l2 --eps 0.5 \\
      --attacks pgd20 autoattack --path digits-l2.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="files that train wrote"
    )
    add_data(parser)
    add_threat(parser)
    parser.add_argument(
        "--path",
        type=Path,
        required=True,
        metavar="FILE",
        help="report as JSON, written after each measurement, resumed if it exists",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the text here, too")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, check and show."""
    settle_threat(args)
    inputs = [*args.models, args.data, *(args.surrogate or [])]
    check_outputs({"--path": args.path, "--markdown": args.markdown}, inputs)
    images, report = measure(args.models, args, sanity_checks=True, path=args.path)
    text = f"{report.to_markdown()}\nImages: {images.about}.\n"
    if args.markdown is not None:
        write_whole(args.markdown, text.encode())
    say(text.rstrip())
    return 1 if any(report.errors.values()) else 0
