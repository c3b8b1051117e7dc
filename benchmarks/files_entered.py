"""How many of the package's files one call enters, what an import costs, and how much there is.

::

    python -m benchmarks.files_entered --label after
    python -m benchmarks.files_entered --quick --list
"""

from __future__ import annotations

import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
from skorch.callbacks import Callback

import robust_ensembles
from robust_ensembles import CEATEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.persistence import load, save

from . import _command, _report

PACKAGE = Path(robust_ensembles.__file__).parent
TESTS = PACKAGE.parent / "tests"
HEAVY = ("pandas", "sklearn.model_selection", "torchvision", "rich", "torch")
_STARTED = 3


class Entered:
    """Files of the package in which a function was called."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def begin(self) -> None:
        """Look at every call of this thread from now on."""
        sys.setprofile(self._look)

    def end(self) -> None:
        """Look no more."""
        sys.setprofile(None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the calls made meanwhile."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def _look(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>":
            self.files.add(code.co_filename)

    def own(self) -> list[str]:
        """Those of the package, by their place in it."""
        paths = [Path(name) for name in self.files]
        return sorted(str(p.relative_to(PACKAGE)) for p in paths if p.is_relative_to(PACKAGE))


class OneStep(Callback):
    """Looks at the first training step of a fit."""

    def __init__(self, entered: Entered) -> None:
        self.entered = entered
        self.done = False

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """Begin with the first batch."""
        if training and not self.done:
            self.entered.begin()

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """End with it."""
        self.entered.end()
        self.done = True


def _ceat(**params: Any) -> CEATEnsembleClassifier:
    return CEATEnsembleClassifier(
        "mlp",
        attack=PGD(eps=0.1, n_steps=2),
        max_epochs=1,
        device="cpu",
        random_state=0,
        **params,
    )


def calls(folder: Path) -> dict[str, Callable[[Entered], None]]:
    """The calls by name; each takes what looks at it."""
    X, y = load_digits_images()
    X, y = X[:256].reshape(256, 64), y[:256]
    fitted = _ceat().fit(X, y)
    path = folder / "fitted.safetensors"
    save(fitted, path)
    pixels = (255 * X[:100]).astype(np.uint8).reshape(100, 8, 8)
    np.savez(
        folder / "data.npz",
        train_images=pixels[:80],
        train_labels=y[:80],
        test_images=pixels[80:],
        test_labels=y[80:100],
    )

    def fit(entered: Entered) -> None:
        with entered.watching():
            _ceat().fit(X, y)

    def step(entered: Entered) -> None:
        _ceat(callbacks=[OneStep(entered)]).fit(X, y)

    def score(entered: Entered) -> None:
        with entered.watching():
            robust_accuracy_score(fitted, X[:50], y[:50], attack=PGD(eps=0.1, n_steps=2))

    def read(entered: Entered) -> None:
        with entered.watching():
            load(path)

    def train(entered: Entered) -> None:
        main = importlib.import_module("robust_ensembles.__main__").main
        data, output = str(folder / "data.npz"), str(folder / "trained.safetensors")
        words = ["train", data, "--method", "ceat", "--epochs", "1", "--output", output]
        quiet = io.StringIO()
        with redirect_stdout(quiet), redirect_stderr(quiet), entered.watching():
            status = main([*words, "--overwrite", "--quiet", "--device", "cpu"])
        if status:
            raise RuntimeError(f"train ended with {status}: {quiet.getvalue()}")

    return {
        "`CEATEnsembleClassifier.fit`": fit,
        "one training step of it": step,
        "`robust_accuracy_score` with PGD": score,
        "`load` of a saved ensemble": read,
        "command `train`": train,
    }


def entered_files() -> dict[str, list[str]]:
    """The files that each call enters once everything is imported."""
    with TemporaryDirectory() as folder:
        named = calls(Path(folder))
        for call in named.values():
            call(Entered())
        found = {}
        for name, call in named.items():
            entered = Entered()
            call(entered)
            found[name] = entered.own()
    return found


def of_package(modules: Iterable[str]) -> int:
    """How many modules are the package's."""
    return sum(name.partition(".")[0] == PACKAGE.name for name in modules)


def imports(rounds: int) -> dict[str, Any]:
    """What ``import robust_ensembles`` costs in a process of its own."""
    command = [sys.executable, "-X", "importtime", "-c", "import robust_ensembles"]
    costs = []
    for _ in range(rounds):
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        table = [line.split("|") for line in log.splitlines() if line.startswith("import time:")]
        *rows, last = [(cells[1].strip(), cells[2].strip()) for cells in table]
        costs.append(int(last[0]) / 1000)
        modules = [name for _, name in [*rows, last]]
    loaded = ", ".join(name for name in HEAVY if name in modules)
    return {
        "`import robust_ensembles`: ms": round(statistics.median(costs)),
        "`import robust_ensembles`: modules, all": len(modules),
        "`import robust_ensembles`: modules, own": of_package(modules),
        f"`import robust_ensembles`: loads, of {', '.join(HEAVY)}": loaded or "none",
    }


def help_seconds(rounds: int) -> dict[str, float]:
    """Time that ``robust-ensembles --help`` takes, medians: on the clock and of the processor."""
    command = [sys.executable, "-m", "robust_ensembles", "--help"]
    wall, cpu = [], []
    for _ in range(rounds):
        begin, used = time.perf_counter(), _children_seconds()
        subprocess.run(command, capture_output=True, check=True)
        wall.append(time.perf_counter() - begin)
        cpu.append(_children_seconds() - used)
    return {
        "`robust-ensembles --help`: s": round(statistics.median(wall), 2),
        "`robust-ensembles --help`: s of CPU": round(statistics.median(cpu), 2),
    }


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def sizes() -> dict[str, Any]:
    """Files and lines of the package and of its tests."""
    result: dict[str, Any] = {}
    for name, folder in {"package": PACKAGE, "tests": TESTS}.items():
        lines = [len(path.read_text().splitlines()) for path in folder.rglob("*.py")]
        result[f"{name}: files"] = len(lines)
        result[f"{name}: lines"] = sum(lines)
        if name == "package":
            result["package: lines of the median file"] = statistics.median(lines)
    return result


def measure(files: dict[str, list[str]], *, quick: bool) -> dict[str, Any]:
    """All figures by name."""
    figures: dict[str, Any] = {f"{name}: files entered": len(own) for name, own in files.items()}
    figures["modules imported after all of these, own"] = of_package(sys.modules)
    if not quick:
        figures |= imports(_STARTED) | help_seconds(_STARTED)
        figures["load of the machine meanwhile (mean of a minute)"] = round(os.getloadavg()[0], 1)
    return figures | sizes()


def joined(old: list[dict[str, Any]], label: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table, with the columns that were measured earlier before this one.

    Parameters
    ----------
    old : list of dict
    label : str
        Replaces a column of this name.
    figures : dict

    Returns
    -------
    rows : list of dict
        Of equal keys; what was not measured is a dash.
    """
    earlier = {row["what"]: row for row in old}
    labels = [name for name in (old[0] if old else {}) if name != "what"]
    labels += [] if label in labels else [label]
    rows = []
    for what in {**earlier, **figures}:
        row = {"what": what, **{name: earlier.get(what, {}).get(name, "-") for name in labels}}
        rows.append({**row, label: figures.get(what, "-")})
    return rows


def write(label: str, figures: dict[str, Any], files: dict[str, list[str]]) -> None:
    """Write ``results/files_entered.json`` and ``results/files_entered.md``."""
    path = _report.RESULTS / "files_entered.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "files": {}}
    _report.write(
        "files_entered",
        "Files that one call enters, and what an import costs",
        f"python -m benchmarks.files_entered --label {label}",
        joined(old["rows"], label, figures),
        about=(
            "Files of the package in which a function is called, class bodies and imports left "
            "out: everything is run once before. CEAT trains three small MLPs on 256 digits for "
            "one epoch, against PGD of two steps; the training step is what runs between a "
            "batch's two callbacks. Times are medians of three "
            "processes each, on a machine that does other things too; those of imports are "
            "Python's own, by `-X importtime`, which itself costs something. On a loaded machine "
            "they say little: two columns of times compare only where the loads do."
        ),
        files={**old["files"], label: files},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    options = _command.parser(__doc__)
    options.add_argument("--label", default="after", help="the column: before, after, ...")
    options.add_argument("--list", action="store_true", help="name the files, too")
    parsed = _command.parse(options, arguments)
    files = entered_files()
    figures = measure(files, quick=parsed.quick)
    if parsed.list:
        for name, own in files.items():
            _command.log.info("%s\n%s\n", name, "\n".join(f"  {path}" for path in own))
    _command.show(joined([], parsed.label, figures))
    if not parsed.quick:
        write(parsed.label, figures, files)


if __name__ == "__main__":
    main()
