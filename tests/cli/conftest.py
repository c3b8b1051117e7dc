"""An empty folder, data, and the commands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_ensembles._cli import main


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(capsys):
    """Run a command; its status and what it wrote to the two streams."""

    def run(line, *more):
        status = main([*line.split(), *more])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def npz():
    """100 training and 40 test images of 2 classes, which a mean tells apart."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 100), ("test", 40)):
        labels = np.arange(n) % 2
        images = rng.integers(0, 120, (n, 6, 6)) + 120 * labels[:, None, None]
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels}
    np.savez("data.npz", **arrays)
    return arrays


@pytest.fixture
def photos():
    """photos/{cat,dog}/*.png, 8 x 8 in colour, 20 each; dogs are bright."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(["cat", "dog"]):
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 120, (8, 8, 3)) + 120 * place
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
