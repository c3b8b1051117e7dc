"""The command line that the benchmarks of speed share."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import _report

log = logging.getLogger(__name__)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark, under the first line of its module's docstring."""
    result = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    result.add_argument("--rounds", type=int, default=7, help="timed rounds, in turns")
    result.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    result.add_argument(
        "--quick", action="store_true", help="small networks, few rounds, and no files"
    )
    return result


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with logging and torch set up for them."""
    parsed = options.parse_args(arguments)
    if parsed.threads < 0:
        options.error(f"--threads must be 0 or more; got {parsed.threads}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    return parsed


def spelled(name: str, options: argparse.ArgumentParser, parsed: argparse.Namespace) -> str:
    """The command that was given, without what is a default; of paths the last part."""
    words = [f"python -m benchmarks.{name}"]
    for option, value in vars(parsed).items():
        if value != options.get_default(option):
            values = value if isinstance(value, list) else [] if value is True else [value]
            shown = [v.name if isinstance(v, Path) else shlex.quote(str(v)) for v in values]
            words.append(" ".join([f"--{option.replace('_', '-')}", *shown]))
    return " ".join(words)


def show(rows: list[dict[str, Any]]) -> None:
    """Write a table into the log."""
    log.info("%s", _report.markdown_table(rows))


def threads() -> str:
    """How many threads torch has, for a report."""
    number = torch.get_num_threads()
    return f"{number} thread" if number == 1 else f"{number} threads"


def rounded(value: float | None, digits: int = 3) -> float | None:
    """So many significant digits; None stays."""
    return None if value is None else float(f"{value:.{digits}g}")
