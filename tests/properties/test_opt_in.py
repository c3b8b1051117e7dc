"""What few need is neither loaded nor entered by an ordinary fit, and is there for those who do."""

import os
import subprocess
import sys

import pytest

FIT = """
import sys
import numpy as np
from small_estimators import make

def fit(**params):
    rng = np.random.default_rng(0)
    X = rng.random((64, 4), np.float32)
    return make(**params).fit(X, np.arange(64) % 3).predict(X)

def opt_in(names):
    folders = ("robust_ensembles/contrib/", "robust_ensembles/distributed/")
    names = {name.replace(".", "/") + "/" for name in names}
    return sorted(name for name in names if any(folder in name for folder in folders))
"""
LOADED = f"""{FIT}
import ast
fit(accelerate=ast.literal_eval(sys.argv[1]), train_split=0.2)
print(opt_in(sys.modules))
"""
ENTERED = f"""{FIT}
import robust_ensembles.contrib.cuda_graph, robust_ensembles.contrib.vmap
import robust_ensembles.parallel

assert len(opt_in(sys.modules)) > 6
files = set()
sys.setprofile(lambda frame, event, arg: files.add(frame.f_code.co_filename))
fit(train_split=0.2)
sys.setprofile(None)
assert any(file.endswith("training/net.py") for file in files)
print(opt_in(files))
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("accelerate", "loaded"),
    [
        ("auto", []),
        (["double_backward", "channels_last"], []),
        (["vmap", "fused_optimizer"], ["", "vmap/"]),
    ],
    ids=str,
)
def test_what_a_fit_loads(accelerate, loaded):
    expected = [f"robust_ensembles/contrib/{name}" for name in loaded]
    assert run(LOADED, repr(accelerate)) == repr(expected)


def test_an_ordinary_fit_enters_no_opt_in_part():
    assert run(ENTERED) == "[]"
