"""The papers' tables and figures, measured again: ``python -m benchmarks.reproduce --help``."""
