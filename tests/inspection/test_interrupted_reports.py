"""Reports that are interrupted: what was measured is on the disk, and is not measured again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from robust_ensembles.attacks import FGSM, PGD
from robust_ensembles.inspection import RobustnessReport, robustness_report
from robust_ensembles.inspection import report as _evaluation


@pytest.fixture(scope="module")
def module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def data(module):
    X = np.random.default_rng(0).random((40, 6), dtype=np.float32)
    with torch.no_grad():
        return X, module(torch.from_numpy(X)).argmax(dim=1).numpy()


ran = []


@dataclass(kw_only=True, repr=False)
class Watched(PGD):
    """Notes that it runs; at its second pass, sends a signal or raises if it is told to."""

    name: str = ""

    def __call__(self, *args, **kwargs):
        ran.append(self.name)
        if Watched.before.get(self.name):
            Watched.before.pop(self.name)()
        return super().__call__(*args, **kwargs)


Watched.before = {}


@pytest.fixture(autouse=True)
def fresh():
    ran.clear()
    Watched.before.clear()


def attacks():
    return {
        name: Watched(name=name, eps=0.02, n_steps=n)
        for name, n in zip("abc", (1, 2, 3), strict=True)
    }


def interrupt(number):
    return lambda: signal.raise_signal(number)


def timeless(report):
    plain = report.to_dict()
    return {**plain, "cells": [{**cell, "seconds": 0} for cell in plain["cells"]]}


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("progress", [False, True])
def test_goes_on(module, data, tmp_path, number, error, progress, capsys):
    options = {"path": tmp_path / "report.json", "sanity_checks": False, "progress": progress}
    expected = robustness_report(module, *data, attacks(), sanity_checks=False)
    ran.clear()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    state = torch.get_rng_state()
    Watched.before["b"] = interrupt(number)
    with pytest.raises(error) as info:
        robustness_report(module, *data, attacks(), **options)
    if error is SystemExit:
        assert info.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(state, torch.get_rng_state())
    assert all(weight.requires_grad for weight in module.parameters())
    assert os.listdir(tmp_path) == ["report.json"]
    kept = RobustnessReport.from_json(tmp_path / "report.json")
    assert [cell.attack for cell in kept.cells] == ["clean", "a"]
    assert kept.to_frame()["attack"].tolist() == ["clean", "a", "worst"]
    assert kept.to_frame()["error"].tolist()[-1] == "without b, c"
    assert "(of 1 of 3 attacks)" in kept.to_markdown()
    assert "not measured" in kept.to_markdown()
    assert ran == ["a", "b"]
    report = robustness_report(module, *data, attacks(), **options)
    assert ran == ["a", "b", "b", "c"]
    assert timeless(report) == timeless(expected)
    assert timeless(RobustnessReport.from_json(tmp_path / "report.json")) == timeless(expected)


def test_interrupt_while_writing(module, data, tmp_path, monkeypatch):
    """The former report stays, and no half of a new one."""
    path = tmp_path / "report.json"
    fsync, calls = os.fsync, []

    def interrupted(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # file and folder after the first cell, then the second cell
            signal.raise_signal(signal.SIGTERM)
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(SystemExit):
            robustness_report(module, *data, attacks(), sanity_checks=False, path=path)
    assert os.listdir(tmp_path) == ["report.json"]
    assert [cell.attack for cell in RobustnessReport.from_json(path).cells] == ["clean"]


def test_checks_go_on(module, data, tmp_path, monkeypatch, short_walks):
    path, checks, run_check = tmp_path / "report.json", [], _evaluation.run_check

    def counted(check, subject):
        checks.append(check)
        if len(checks) == 4:
            signal.raise_signal(signal.SIGTERM)
        return run_check(check, subject)

    monkeypatch.setattr(_evaluation, "run_check", counted)
    options = {"attacks": [FGSM(eps=0.02)], "n_sanity": 5, "path": path}
    with pytest.raises(SystemExit):
        robustness_report(module, *data, **options)
    kept = RobustnessReport.from_json(path)
    assert [[f.check for f in found] for found in kept.findings.values()] == [checks[:3]]
    robustness_report(module, *data, **options)
    assert checks[4] == checks[3]
    skipped = {f.check for found in kept.findings.values() for f in found if f.passed is None}
    assert [c for c in checks[4:] if c in checks[:3]] == [c for c in checks[:3] if c in skipped]


def test_somebody_else_handles_it(module, data):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *args: seen.append(args[0]))
    try:
        Watched.before["b"] = interrupt(signal.SIGTERM)
        report = robustness_report(module, *data, attacks(), sanity_checks=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert len(report.cells) == 4


def test_in_a_thread(module, data):
    reports = []

    def run():
        reports.append(robustness_report(module, *data, attacks(), sanity_checks=False))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(reports[0].cells) == 4


SCRIPT = """
import sys, time, signal
import numpy as np, torch
from torch import nn
from robust_ensembles.attacks import PGD
from robust_ensembles.inspection import robustness_report

torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
X = np.random.default_rng(0).random((2000, 64), dtype=np.float32)
y = module(torch.from_numpy(X)).argmax(dim=1).numpy()
attacks = {"short": PGD(eps=1e-4, n_steps=2)}
if sys.argv[2] == "long":
    attacks["long"] = PGD(eps=1e-4, n_steps=10**6, batch_size=2000)
try:
    robustness_report(module, X, y, attacks, path=sys.argv[1], sanity_checks=False)
finally:
    print(time.time(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_prompt(tmp_path, number):
    """Within a long attack: at the end of the operation that is being computed."""
    path = tmp_path / "report.json"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    process = subprocess.Popen(
        [*command, "long"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not path.exists() or len(json.loads(path.read_text())["cells"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    sent = time.time()
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number), errors
    assert float(out) - sent < 2
    assert os.listdir(tmp_path) == ["report.json"]
    subprocess.run([*command, "short"], check=True, capture_output=True)
    assert len(RobustnessReport.from_json(path).cells) == 2
