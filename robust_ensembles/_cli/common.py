"""Arguments that the commands share, and how their texts are read."""

from __future__ import annotations

import argparse
import ast
import math
import re
from pathlib import Path
from typing import Any

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
