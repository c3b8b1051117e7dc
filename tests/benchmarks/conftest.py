"""Where `benchmarks` is found, and what its tests share."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if (ROOT / "benchmarks").exists():
    sys.path.insert(0, str(ROOT))
else:  # in the source distribution
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def small_images(monkeypatch):
    """Reproductions of the papers' tables take small synthetic images."""
    from small_reproduction import synthetic

    from benchmarks.reproduce import _data

    monkeypatch.setattr(_data, "load", synthetic)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where they write."""
    from benchmarks import _report

    monkeypatch.setattr(_report, "RESULTS", tmp_path / "results")
    return tmp_path / "results" / "reproduce"
