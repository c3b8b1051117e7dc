"""The command line: the package's estimators, attacks and report for who has files, not arrays."""

from .main import main

__all__ = ["main"]
