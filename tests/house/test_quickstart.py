"""The quickstart runs, with tiny settings, and writes what it says."""

import csv
import importlib.util
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


@pytest.fixture
def load_example(monkeypatch):
    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def read_csv(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_quickstart_prints_one_table_and_writes_the_numbers_and_a_plot(
    load_example, tmp_path, capsys
):
    quickstart = load_example("quickstart")
    quickstart.main([*TINY, "--seeds", "2", "--output", str(tmp_path / "new" / "folder")])

    printed = capsys.readouterr().out
    assert printed.count("worst") == 2, "a column of the one table, and its caption"
    assert all(method in printed for method in METHODS)
    assert "96 training and 30 test images" in " ".join(printed.split())
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"digits.md", "digits.csv", "digits-robustness.png"}
    assert files["digits-robustness.png"].read_bytes().startswith(b"\x89PNG")
    assert files["digits.md"].read_text(encoding="utf-8").count("±") == 4 * 4 + 1
    rows = read_csv(files["digits.csv"])
    per_fit = 4 + len(quickstart.DIGITS.curve_eps)
    assert len(rows) == len(METHODS) * 2 * per_fit
    assert {row["seed"] for row in rows} == {"0", "1"}


def test_the_table_is_the_mean_and_deviation_of_the_csv(load_example, tmp_path):
    quickstart = load_example("quickstart")
    quickstart.main([*TINY, "--seeds", "2", "--output", str(tmp_path)])

    rows = read_csv(tmp_path / "digits.csv")
    pgd = [
        100 * float(row["accuracy"])
        for row in rows
        if (row["method"], row["attack"], row["eps"]) == ("CLDL", "pgd20", "0.1")
    ]
    assert len(pgd) == 2
    table = (tmp_path / "digits.md").read_text(encoding="utf-8").splitlines()
    cells = next(line for line in table if line.startswith("| CLDL")).split(" | ")
    assert cells[3] == f"{np.mean(pgd):.1f} ± {np.std(pgd, ddof=1):.1f}"


def test_two_runs_give_the_same_numbers_and_leave_the_threads_alone(load_example, tmp_path):
    quickstart = load_example("quickstart")
    torch.set_num_threads(2)
    for folder in ("a", "b"):
        quickstart.main([*TINY, "--seeds", "1", "--output", str(tmp_path / folder)])
    assert read_csv(tmp_path / "a" / "digits.csv") == read_csv(tmp_path / "b" / "digits.csv")
    assert torch.get_num_threads() == 2


def test_fashion_mnist_has_settings_of_its_own(load_example, tmp_path, monkeypatch):
    quickstart = load_example("quickstart")
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    monkeypatch.setattr(quickstart, "load_fashion_mnist", lambda split: (X, np.arange(60) % 10))

    arguments = ["--data", "fashion-mnist", "--n-train", "40", "--n-test", "8", "--epochs", "1"]
    quickstart.main([*arguments, "--seeds", "1", "--output", str(tmp_path)])

    text = (tmp_path / "fashion-mnist.md").read_text(encoding="utf-8")
    assert "40 training and 8 test images" in text
    assert "lenet5" in text
    assert "eps = 0.05" in text
