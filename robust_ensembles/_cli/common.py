"""Arguments that the commands share, and how their texts are read."""

from __future__ import annotations

import argparse
import ast
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..attacks import BoundedAttack, Transfer
from ..attacks.engine.balls import check_radius
from ..metrics import attack_from_name

PIXELS = (0.0, 1.0)
"""The box that images are given in."""

USUAL = 8 / 255
"""Radius in linf that is taken where none is given."""


def has_own_radius(name: str, surrogate: Any = None) -> bool:
    """Whether the name of an attack says its radius."""
    first, second = (_bounded(name, surrogate, eps=eps).eps for eps in (0.25, 0.5))
    return bool(first == second)


def settle_threat(args: argparse.Namespace) -> None:
    """Fill in the radius that `evaluate` and `report` attack with, before files are read.

    Parameters
    ----------
    args : Namespace
        With `attacks`, `eps`, `norm` and `surrogate`; `eps` is set where it is None.

    Raises
    ------
    ValueError
        For a radius of other units than the pixels', or of another norm than the attack's.
    """
    if args.eps is None:
        if args.norm != "linf":
            raise ValueError(
                f"--norm {args.norm} needs --eps, such as --eps 0.5: the usual 8/255 is a radius "
                "in linf"
            )
        args.eps = USUAL
    check_radius(args.eps, args.norm, PIXELS, "--eps")
    for name in args.attacks:
        attack = _bounded(name, args.surrogate, eps=args.eps, norm=args.norm)
        check_radius(attack.eps, attack.norm, PIXELS, f"--attacks {name}")
        if attack.norm != args.norm and not has_own_radius(name, args.surrogate):
            raise ValueError(
                f"--attacks {name}: --eps {args.eps:g} is a radius in {args.norm}, not in "
                f"{attack.norm}: give the name one of its own, such as {name}_0.5"
            )


def shown(eps: float, norm: str) -> str:
    """A radius for readers."""
    return f"{eps:.4g} ({255 * eps:.4g}/255)" if norm == "linf" else f"{eps:.4g}"


def words_of(attack: Any) -> list[str]:
    """Options by which `evaluate` takes the radius and norm of an attack, to the last digit."""
    eps, norm = (attack.eps, attack.norm) if attack is not None else (USUAL, "linf")
    levels = round(255 * eps)
    text = f"{levels}/255" if norm == "linf" and levels / 255 == eps else repr(float(eps))
    return ["--eps", text, *(["--norm", norm] if norm != "linf" else [])]


def _bounded(name: str, surrogate: Any, **threat: Any) -> BoundedAttack:
    """The attack that a name stands for, or the one whose examples are transferred."""
    attack: Any = attack_from_name(name, surrogate=surrogate, **threat)
    return attack.attacks()[0] if isinstance(attack, Transfer) else attack


_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*")
_DATA = (
    "a folder with a sub-folder of images for each class; an archive (.npz) with train_images "
    "and train_labels, test_images and test_labels, or one pair of these; or one of digits, "
    "mnist, fashion-mnist, cifar10 and cifar100 (for a folder of that name write ./digits)"
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples' lines, and shows those defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = bool(action.default) or action.dest == "seed"
        return super()._get_help_string(action) if shown else action.help


def number(text: str) -> float:
    """Read a number or a fraction such as 8/255."""
    match = _FRACTION.fullmatch(text)
    try:
        return float(match[1]) / float(match[2]) if match else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a fraction such as 8/255"
        ) from None


def radius(text: str) -> float:
    """Read a finite number or fraction from 0."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0, such as 8/255")
    return value


def share(text: str) -> float:
    """Read a part of 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 1, such as 0.2")
    return value


def count(text: str) -> int:
    """Read a whole number from 1."""
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def count_or_all(text: str) -> int | None:
    """Read a whole number from 1, or None for all."""
    return None if text == "all" else count(text)


def seed(text: str) -> int:
    """Read a seed, of 32 bits as scikit-learn has them."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0, below 2**32")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """Read ``name=value``."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            f"{text!r} must be name=value, such as lr=0.01 or attack__n_steps=5"
        )
    return name, _value(value)


def _value(text: str) -> Any:
    """A Python literal, a fraction, or the text itself."""
    if _FRACTION.fullmatch(text):
        return number(text)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the positional DATA and how it is read."""
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parser.add_argument("--test-size", type=share, metavar="PART", help=_TEST_SIZE)
    parser.add_argument(
        "--size",
        type=count,
        metavar="PIXELS",
        help="height and width that a folder's images are resized to; else they must be alike",
    )
    parser.add_argument("--grey", action="store_true", help="make a folder's images grey")
    parser.add_argument("--seed", type=seed, default=0, help=_SEED)


_TEST_SIZE = (
    "part of DATA's training images that is held out, such as 0.2, drawn by --seed with equal "
    "shares of each class; the same PART and seed hold out the same images in every command"
)
_SEED = "of everything random: which images are held out or drawn, weights, order"


def add_common(parser: argparse._ActionsContainer) -> None:
    """Add what is last in every command's help."""
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")


def add_threat(parser: argparse.ArgumentParser) -> None:
    """Add which attacks are run, and on what."""
    group = parser.add_argument_group("attacks")
    group.add_argument(
        "--attacks",
        nargs="+",
        metavar="NAME",
        default=["fgsm", "pgd20", "apgd", "autoattack"],
        help="names with a number of steps, and with norm and eps of their own if wanted: fgsm, "
        "pgd20, mora, autoattack, ensembleautoattack, transfer_mim10, cw40_l2_0.5",
    )
    group.add_argument(
        "--eps",
        type=radius,
        help="radius of the ball around an image: a number or a fraction, for pixels from 0 to 1 "
        "(images of 0 to 255 are divided by 255); by default 8/255 in linf, none in l2",
    )
    group.add_argument("--norm", choices=["linf", "l2"], default="linf", help="in which eps is")
    group.add_argument(
        "--surrogate",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="models trained apart, on which attacks named transfer make their examples",
    )
    group.add_argument(
        "--samples",
        type=count_or_all,
        default="500",
        metavar="N",
        help="how many of the images are attacked, drawn by --seed; or all",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the model's own")


# where nobody looks at a screen, a table is as wide as it needs to be
_WIDTH_OF_A_FILE = 2000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def say(text: str = "") -> None:
    """Write a line of the result."""
    _console(error=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Write a line about what goes on."""
    _console(error=True).print(text, soft_wrap=True)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, n_left: int = 1) -> None:
    """Write a table in Markdown; all but the first `n_left` columns are aligned to the right."""
    table = Table(box=box.MARKDOWN)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < n_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("|", "\\|") for cell in row))
    console = _console(error=False)
    with console.capture() as captured:
        console.print(table)
    # without the box's empty edges
    lines = [line.rstrip() for line in captured.get().splitlines()]
    say("\n".join(line for line in lines if line))


@contextmanager
def messages_as_lines() -> Iterator[None]:
    """Show warnings and the package's log as one line each, within the block."""
    logger = logging.getLogger("robust_ensembles")
    handler, level = _Lines(), logger.level
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def prints_told() -> Iterator[None]:
    """Send what is printed within the block, as skorch does, to the error stream."""
    console = _console(error=True)
    coloured = console.is_terminal and not console.no_color
    with redirect_stdout(sys.stderr if coloured else _WithoutColours()):
        yield


class _WithoutColours(io.TextIOBase):
    """The error stream, for a file."""

    def write(self, text: str) -> int:
        sys.stderr.write(_COLOUR.sub("", text))
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage())


def _show_warning(message: Warning | str, *_: object) -> None:
    tell(f"warning: {' '.join(str(message).split())}")


def _console(*, error: bool) -> Console:
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def check_outputs(
    files: Mapping[str, Path | None],
    inputs: Iterable[str | Path],
    *,
    folders: Mapping[str, Path | None] | None = None,
) -> None:
    """Raise, before any work, for what could not be written after it.

    Parameters
    ----------
    files : mapping of str to Path or None
        Files to write, by their options.
    inputs : iterable of str or Path
        What is read. Names of data sets may be among them.
    folders : mapping of str to Path or None, default=None
        Folders to write to, by their options; they need not exist.

    Raises
    ------
    OSError
        For a file in a missing folder or where no file can be, for a folder that cannot be made.
    ValueError
        For an output that is an input, lies among a folder's images, or is another output.
    """
    written = {option: path for option, path in files.items() if path is not None}
    made = {option: path for option, path in (folders or {}).items() if path is not None}
    for path in written.values():
        _check_file(path)
    for path in made.values():
        _check_folder(path)
    outputs = {**written, **made}
    read = [Path(path) for path in inputs]
    for option, path in outputs.items():
        for source in read:
            _check_apart(f"{option} {path}", path, source)
    for (option, path), (other, another) in combinations(outputs.items(), 2):
        if path.resolve() == another.resolve():
            raise ValueError(f"{other} {another} is what {option} is, too: give another path")


def _check_file(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")
    # a device would be replaced by a file
    if (path.exists() and not path.is_file()) or not os.access(folder, os.W_OK):
        raise OSError(f"{path} cannot be written")


def _check_folder(path: Path) -> None:
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be a folder, as {there} is none")
    if not os.access(there, os.W_OK):
        raise OSError(f"{path} cannot be written to")


def _check_apart(what: str, path: Path, source: Path) -> None:
    """Raise if a path is what is read, or lies in one of its sub-folders, which are classes."""
    if not source.exists():
        return
    if path.exists() and path.samefile(source):
        raise ValueError(f"{what} is read, and would be destroyed: give another path")
    if source.is_dir() and source.resolve() in path.resolve().parent.parents:
        raise ValueError(f"{what} lies among the images of {source}: give another path")
