"""Reproducible measurements: ``python -m benchmarks.NAME`` writes JSON and Markdown."""
