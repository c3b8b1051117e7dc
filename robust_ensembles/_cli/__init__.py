"""The command line: the package's estimators, attacks and report on files instead of arrays."""

from .main import main

__all__ = ["main"]
