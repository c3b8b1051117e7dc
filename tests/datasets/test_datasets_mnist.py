import gzip
import hashlib
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from robust_ensembles.datasets import load_fashion_mnist, load_mnist
from robust_ensembles.datasets import mnist as _mnist
from robust_ensembles.exceptions import DatasetNotFoundError

LOADERS = {"MNIST": load_mnist, "FashionMNIST": load_fashion_mnist}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}


@pytest.fixture(autouse=True)
def _no_other_places(monkeypatch, tmp_path):
    monkeypatch.setattr(_mnist, "_DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in LOADERS:
        # Nothing listens there: the download fails for real, on any machine.
        monkeypatch.setattr(getattr(torchvision.datasets, name), "mirrors", ["http://127.0.0.1:9/"])


def idx(array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def arrays(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)


def write(folder, split="train", *, gz=False, images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    default_images, default_labels = arrays()
    images = default_images if images is None else images
    labels = default_labels if labels is None else labels
    for kind, array, ndim in (("images", images, 3), ("labels", labels, 1)):
        content = array if isinstance(array, bytes) else idx(array)
        path = folder / f"{PREFIX[split]}-{kind}-idx{ndim}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content, mtime=0) if gz else content)
    return images, labels


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", LOADERS)
def test_files_in_data_home(tmp_path, name, split, flat, gz):
    images, labels = write(tmp_path if flat else tmp_path / name / "raw", split, gz=gz)
    X, y = LOADERS[name](split, data_home=tmp_path, download=False)
    assert X.dtype == np.uint8
    assert y.dtype == np.int64
    np.testing.assert_array_equal(X, images[:, None])
    np.testing.assert_array_equal(y, labels)
    assert X.flags.writeable


def test_environment_names_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("ROBUST_ENSEMBLES_DATA", str(tmp_path))
    assert load_mnist()[0].shape == (12, 1, 28, 28)
    monkeypatch.delenv("ROBUST_ENSEMBLES_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DatasetNotFoundError, match="home/robust_ensembles_data"):
        load_mnist(download=False)


def test_debian_folder_comes_after_data_home(tmp_path):
    _, debian = write(tmp_path / "debian", gz=True)
    _, y = load_fashion_mnist(data_home=tmp_path / "none", download=False)
    np.testing.assert_array_equal(y, debian)
    images, home = arrays(5, seed=1)
    write(tmp_path / "home", images=images, labels=home)
    _, y = load_fashion_mnist(data_home=tmp_path / "home", download=False)
    np.testing.assert_array_equal(y, home)
    with pytest.raises(DatasetNotFoundError):
        load_mnist(data_home=tmp_path / "none", download=False)


@pytest.mark.parametrize("name", LOADERS)
def test_missing_files_without_network(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(DatasetNotFoundError, match="the download failed") as info:
        LOADERS[name](data_home=tmp_path)
    assert time.monotonic() - start < 10
    message = str(info.value)
    assert isinstance(info.value, FileNotFoundError)
    assert "train-images-idx3-ubyte and train-labels-idx1-ubyte" in message
    assert str(tmp_path / name / "raw") in message
    assert ("dataset-fashion-mnist" in message) == (name == "FashionMNIST")
    assert socket.getdefaulttimeout() is None


def test_missing_files_without_download(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="download=False, so it was not downloaded"):
        load_mnist("test", data_home=tmp_path / "new", download=False)
    assert not (tmp_path / "new").exists()


def test_data_home_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetNotFoundError, match="the download failed"):
        load_mnist(data_home=tmp_path / "file")


def test_download(tmp_path, monkeypatch, serve):
    site = tmp_path / "site"
    images, _ = write(site, "train", gz=True)
    write(site, "test", gz=True)
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(site.iterdir())
    ]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [serve(site)])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    X, _ = load_mnist(data_home=tmp_path / "home")
    np.testing.assert_array_equal(X[:, 0], images)
    assert load_mnist("test", data_home=tmp_path / "home", download=False)[0].shape == X.shape


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (b"", "is not an idx file of unsigned bytes with 3 axes .it starts with nothing"),
        (b"hello, this is no idx file", "is not an idx file"),
        (idx(np.zeros(12)), "is not an idx file of unsigned bytes with 3 axes"),
        (idx(np.zeros((12, 28, 28)))[:-1], "it is truncated or corrupt"),
        (idx(np.zeros((12, 28, 28))) + b"x", "it is truncated or corrupt"),
        (np.zeros((11, 28, 28)), "has 11 images.*has 12 labels"),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_bad_images_are_named(tmp_path, images, match, gz):
    write(tmp_path, images=images, gz=gz)
    with pytest.raises(ValueError, match=match) as info:
        load_mnist(data_home=tmp_path)
    assert str(tmp_path / "train-images-idx3-ubyte") in str(info.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:40] + b"?" + b[41:]])
def test_bad_gzip_is_named(tmp_path, damage):
    write(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is truncated or corrupt"):
        load_mnist(data_home=tmp_path)


def test_labels_out_of_range(tmp_path):
    write(tmp_path, labels=np.full(12, 10))
    with pytest.raises(ValueError, match="has label 10; MNIST has 0 to 9"):
        load_mnist(data_home=tmp_path)


def test_mistaken_data_set_is_noticed(tmp_path):
    fashion = np.array([*_mnist._FIRST_LABELS["FashionMNIST", "train"], 3, 4])
    write(tmp_path, labels=fashion)
    load_fashion_mnist(data_home=tmp_path)
    with pytest.raises(ValueError, match="holds the train split of FashionMNIST, not the train"):
        load_mnist(data_home=tmp_path)


@pytest.mark.parametrize("loader", LOADERS.values())
def test_unknown_split(loader):
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\]"):
        loader("val")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_real_fashion_mnist(tmp_path, monkeypatch, split, n):
    monkeypatch.setattr(_mnist, "_DEBIAN_FASHION_MNIST", DEBIAN)
    X, y = load_fashion_mnist(split, data_home=tmp_path, download=False)
    assert X.shape == (n, 1, 28, 28)
    assert (X.min(), X.max()) == (0, 255)
    np.testing.assert_array_equal(np.bincount(y), [n // 10] * 10)
    assert tuple(y[:10]) == _mnist._FIRST_LABELS["FashionMNIST", split]
