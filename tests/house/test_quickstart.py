"""The quickstart runs, with tiny settings, and writes what it says."""

import contextlib
import csv
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = ["Vanilla", "CLDL", "NCEn", "CEAT"]
TINY = ["--n-train", "96", "--n-test", "30", "--epochs", "1"]


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def run(quickstart, tmp_path_factory):
    """What a run of two seeds prints, and the files that it writes."""
    folder = tmp_path_factory.mktemp("quickstart") / "new" / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        quickstart.main([*TINY, "--seeds", "2", "--output", str(folder)])
    return printed.getvalue(), {path.name: path for path in folder.iterdir()}


def read_csv(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_quickstart_prints_one_table_and_writes_the_numbers_and_a_plot(quickstart, run):
    printed, files = run
    assert printed.count("worst") == 2, "a column of the one table, and its caption"
    assert all(method in printed for method in METHODS)
    assert "96 training and 30 test images" in " ".join(printed.split())
    assert set(files) == {"digits.md", "digits.csv", "digits-robustness.png"}
    assert files["digits-robustness.png"].read_bytes().startswith(b"\x89PNG")
    assert files["digits.md"].read_text(encoding="utf-8").count("±") == 4 * 4 + 1
    rows = read_csv(files["digits.csv"])
    per_fit = 4 + len(quickstart.DIGITS.curve_eps)
    assert len(rows) == len(METHODS) * 2 * per_fit
    assert {row["seed"] for row in rows} == {"0", "1"}


def test_the_table_is_the_mean_and_deviation_of_the_csv(run):
    _, files = run
    pgd = [
        100 * float(row["accuracy"])
        for row in read_csv(files["digits.csv"])
        if (row["method"], row["attack"], row["eps"]) == ("CLDL", "pgd20", "0.1")
    ]
    assert len(pgd) == 2
    table = files["digits.md"].read_text(encoding="utf-8").splitlines()
    cells = next(line for line in table if line.startswith("| CLDL")).split(" | ")
    assert cells[3] == f"{np.mean(pgd):.1f} ± {np.std(pgd, ddof=1):.1f}"


def test_another_run_gives_the_same_numbers_and_leaves_the_threads_alone(quickstart, run, tmp_path):
    torch.set_num_threads(2)
    quickstart.main([*TINY, "--seeds", "1", "--output", str(tmp_path)])
    first = [row for row in read_csv(run[1]["digits.csv"]) if row["seed"] == "0"]
    assert read_csv(tmp_path / "digits.csv") == first
    assert torch.get_num_threads() == 2


def test_fashion_mnist_has_settings_of_its_own(quickstart, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    monkeypatch.setattr(quickstart, "load_fashion_mnist", lambda split: (X, np.arange(60) % 10))

    arguments = ["--data", "fashion-mnist", "--n-train", "40", "--n-test", "8", "--epochs", "1"]
    quickstart.main([*arguments, "--seeds", "1", "--output", str(tmp_path)])

    text = (tmp_path / "fashion-mnist.md").read_text(encoding="utf-8")
    assert "40 training and 8 test images" in text
    assert "lenet5" in text
    assert "eps = 0.05" in text
