"""The argument parser, the dispatch to commands, and the handling of their errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__
from .arguments import COMMANDS, HelpFormatter

_DESCRIPTION = """\
Ensembles of neural networks that withstand adversarial examples, and their honest evaluation.
"""
_EXAMPLES = """\
examples:
  {prog} train digits --method ceat --eps 0.1 --epochs 10 --output digits.safetensors
  {prog} evaluate digits.safetensors digits --test-size 0.2 --attacks fgsm pgd20 --eps 0.1
  {prog} train --help

exit status: 0; 1 if an attack could not be run; 2 after an error, which is told in one line;
130 after Ctrl-C; 143 after SIGTERM
"""
# raised by the package on purpose, or by the system; anything else is a bug of the package
_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, MemoryError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, default=None
        None takes those of the process.

    Returns
    -------
    status : int
        0 if all went well, 1 if an attack could not be run, 2 after an error, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        For arguments that cannot be understood, after ``--help``, and after SIGTERM.
    """
    prog = _program()
    args = _parser(prog).parse_args(arguments)
    args.prog = prog
    # imported only now, so that --help does not wait for torch
    from .output import messages_as_lines, tell

    try:
        with messages_as_lines():
            return int(import_module(f".{args.command}", __package__).run(args))
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except _ERRORS as error:
        if args.traceback:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        tell(f"{prog} {args.command}: error: {message}")
        return 2


def _program() -> str:
    """The name under which the program was called."""
    installed = Path(sys.argv[0]).name.startswith("robust-ensembles")
    return "robust-ensembles" if installed else "python -m robust_ensembles"


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"robust_ensembles {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.description.partition("\n")[0].rstrip(".").lower(),
            description=command.description,
            epilog=command.examples.format(prog=prog),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
    return parser
