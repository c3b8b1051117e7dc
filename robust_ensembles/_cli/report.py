"""Command ``report``: models under attacks, with sanity checks of the numbers."""

from __future__ import annotations

import argparse

from .._system import write_whole
from .evaluate import measure
from .output import check_outputs, say
from .threat import settle_threat


def run(args: argparse.Namespace) -> int:
    """Measure, check and print the report."""
    settle_threat(args)
    inputs = [*args.models, args.data, *(args.surrogate or [])]
    check_outputs({"--path": args.path, "--markdown": args.markdown}, inputs)
    images, report = measure(args.models, args, sanity_checks=True, path=args.path)
    text = f"{report.to_markdown()}\nImages: {images.about}.\n"
    if args.markdown is not None:
        write_whole(args.markdown, text.encode())
    say(text.rstrip())
    return 1 if any(report.errors.values()) else 0
