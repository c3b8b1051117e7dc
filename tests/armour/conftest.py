"""How many examples of bad input are tried, and with what patience."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from endings import no_hang
from hypothesis import HealthCheck, Phase, given, settings
from shares import FAST, SLOW

# the helpers that take files of models apart
sys.path.append(str(Path(__file__).parents[1] / "state"))

_COMMON = {
    "deadline": None,  # a first example builds caches; `no_hang` watches instead
    # examples are arrays and fits: large and slow by their nature
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
    # explaining runs a failing example hundreds of times
    "phases": [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
}
settings.register_profile("armour fast", derandomize=True, database=None, **_COMMON)
settings.register_profile("armour slow", **_COMMON)

_COUNTED = "armour examples"


@pytest.fixture(params=["fast", pytest.param("slow", marks=pytest.mark.slow)])
def explore(request, record_property):
    """Call a check with many examples: ``explore(check, X=strategy, ...)``.

    How many stands in `shares`, under the name of the test.
    """
    profile = settings.get_profile(f"armour {request.param}")
    share = {"fast": FAST, "slow": SLOW}[request.param][request.node.originalname]

    def run(check, **strategies):
        finished = 0

        def example(**values):
            nonlocal finished
            with no_hang():
                check(**values)
            finished += 1

        settings(profile, max_examples=share)(given(**strategies)(example))()
        record_property(_COUNTED, finished)
        assert finished >= share, f"only {finished} of {share} examples"

    return run


def pytest_terminal_summary(terminalreporter):
    """Say how many examples all processes together have tried."""
    passed = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    counts = [n for r in passed for name, n in r.user_properties if name == _COUNTED]
    if counts:
        terminalreporter.write_line(f"armour: {sum(counts)} examples in {len(counts)} tests")
