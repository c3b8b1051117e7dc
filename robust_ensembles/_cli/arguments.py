"""What the commands take, and what their help says.

Nothing heavy is imported here, so that help and errors in arguments come at once.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# list of choices: begin (written by `make lists`)
METHODS = (
    "vanilla",
    "adversarial",
    "adp",
    "gal",
    "gpmr",
    "trs",
    "cldl",
    "ncen",
    "dverge",
    "fasten",
    "lafed",
    "ceat",
)
DATASETS = (
    "mnist",
    "fashion-mnist",
    "cifar10",
    "cifar100",
)
# list of choices: end

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


# -------------------------------------------------------------------------------------------- train

_TRAIN = """\
Train an ensemble and write it to a file.

Images of 0 to 255 are divided by 255, so eps is in units of pixels from 0 to 1. The network is
chosen by the size of the images unless a recipe or --set module=... says another. What is held
out is never trained on: the test part of DATA where it has one, else a fifth of its images.
"""
_TRAIN_EXAMPLES = """\
examples:
  # the digits that come with scikit-learn: half a minute
  {prog} train digits --method ceat --eps 0.1 --epochs 10 --output digits.safetensors

  # your own photos, photos/cat/1.jpg, photos/dog/7.png, ...: resized, a fifth held out
  {prog} train photos --size 32 --method adversarial --output pets.safetensors

  # your own arrays, with the settings that were published for Fashion-MNIST
  {prog} train data.npz --method cldl --recipe fashion-mnist --output cldl.safetensors

  # parameters of the estimator; those of its attack, network and optimizer behind "__"
  {prog} train data.npz --method gal --set attack=pgd10 --eps 4/255 --set n_estimators=5 \\
      --set lr=0.01 --set module=resnet20 --output gal.safetensors

  # hours of training: killed or interrupted, the same command goes on
  {prog} train cifar10 --method dverge --recipe cifar10 --checkpoints runs/dverge \\
      --output dverge.safetensors
"""


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument(
        "--test", metavar="DATA2", help="other data to hold out: read as DATA is, its test part"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help=_OUTPUT)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=METHODS, required=True, help=_METHOD)
    group.add_argument(
        "--recipe",
        metavar="DATASET",
        help=f"published settings for {', '.join(DATASETS)}: see the command recipes",
    )
    group.add_argument("--source", help="whose settings, where several have published some")
    group.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help=_SET
    )
    group.add_argument(
        "--eps",
        type=radius,
        help="radius of the attack in training, a number or a fraction such as 8/255, for pixels "
        "from 0 to 1; its steps change in proportion; by default the method's or recipe's",
    )
    group.add_argument("--epochs", type=count, metavar="N", help="by default the method's")
    running = parser.add_argument_group("running")
    running.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the best there is")
    running.add_argument("--checkpoints", type=Path, metavar="DIR", help=_CHECKPOINTS)
    running.add_argument("--quiet", action="store_true", help="do not show the epochs")
    add_common(running)


_OUTPUT = "where the trained ensemble goes, such as model.safetensors"
_METHOD = "which defence is trained; vanilla has none, adversarial is what the others must beat"
_SET = (
    "a parameter of the estimator, as in set_params: a Python literal, a fraction or a text; "
    "attack=pgd10 names an attack; may be given several times"
)
_CHECKPOINTS = "folder of this training alone, written after each epoch; the same command goes on"


# ----------------------------------------------------------------------------------------- evaluate

_EVALUATE = """\
Measure what attacks do to a trained ensemble.

An image counts as robust if it is classified correctly before and after the attack. The images
are the test part of DATA, the part that --test-size holds out, or all of DATA where it has no
parts. eps is in units of pixels from 0 to 1; images of 0 to 255 are divided by 255.
The exit status is 1 if an attack could not be run.
"""
_EVALUATE_EXAMPLES = """\
examples:
  # the held-out fifth of a training with the same seed
  {prog} evaluate digits.safetensors digits --test-size 0.2 --attacks fgsm pgd20 --eps 0.1

  # a folder, read as in training; all of it; numbers for another program
  {prog} evaluate pets.safetensors photos-test --size 32 --samples all --json pets.json

  # black box: examples made on other models
  {prog} evaluate gal.safetensors data.npz --attacks transfer_mim10 pgd20 \\
      --surrogate vanilla.safetensors

which attacks? fgsm and pgd20 are quick looks; autoattack and, for ensembles above all,
ensembleautoattack are what to report. An attack that is too weak gives a number that is too high.
"""


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a file that train wrote")
    add_data(parser)
    add_threat(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    add_common(parser)


# ------------------------------------------------------------------------------------------- report

_REPORT = """\
Compare trained ensembles under attacks, with sanity checks of the numbers.

Beside the robust accuracies stand findings: gradients that vanish, weaker attacks that do better
than stronger ones, transferred examples that break what gradients leave, and others. The report
is kept in FILE after each measurement: interrupted, the same command goes on from there, and with
more models or attacks it measures only what is missing.
The exit status is 1 if an attack could not be run.
"""
_REPORT_EXAMPLES = """\
examples:
  {prog} report ceat.safetensors vanilla.safetensors data.npz --eps 8/255 \\
      --attacks fgsm pgd20 mora autoattack --path report.json --markdown report.md

  # the part that training with seed 0 held out, 200 of its images, in the L2 norm
  {prog} report digits.safetensors digits --test-size 0.2 --samples 200 --norm l2 --eps 0.5 \\
      --attacks pgd20 autoattack --path digits-l2.json
"""


def _report_arguments(parser: argparse.ArgumentParser) -> None:
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


# ------------------------------------------------------------------------------------------ recipes

_RECIPES = """\
Show the settings that were published for each method and data set.

Without arguments: which settings exist, for each method and data set, by source, the one that
is taken by default first. With --method or --dataset, all values.
"""
_RECIPES_EXAMPLES = """\
examples:
  {prog} recipes
  {prog} recipes --method cldl --dataset fashion-mnist

tags: P printed in a paper, C read in released code, M remembered, I inferred. module__,
optimizer__ and attack__ are parameters of the network, the optimizer and the attack in training.
"""


def _recipes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, help="of this one only")
    parser.add_argument("--dataset", help=f"one of {', '.join(DATASETS)}")
    add_common(parser)


@dataclass(frozen=True)
class Command:
    """A command of the program: module `name` of this folder has what it does, `run(args)`.

    Parameters
    ----------
    name : str
    description : str
    examples : str
        With ``{prog}`` for how the program was called.
    add_arguments : callable
        Takes the parser.
    """

    name: str
    description: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


COMMANDS = (
    Command("train", _TRAIN, _TRAIN_EXAMPLES, _train_arguments),
    Command("evaluate", _EVALUATE, _EVALUATE_EXAMPLES, _evaluate_arguments),
    Command("report", _REPORT, _REPORT_EXAMPLES, _report_arguments),
    Command("recipes", _RECIPES, _RECIPES_EXAMPLES, _recipes_arguments),
)
"""What the program can do."""
