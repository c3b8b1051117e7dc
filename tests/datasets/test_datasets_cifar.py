import hashlib
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import torchvision.datasets

from robust_ensembles.datasets import load_cifar10, load_cifar100
from robust_ensembles.exceptions import DatasetNotFoundError

LOADERS = {"CIFAR10": load_cifar10, "CIFAR100": load_cifar100}


class OldDtype:
    """Pickles as NumPy wrote dtypes when CIFAR was published, which NumPy 2.4 deprecates."""

    def __reduce__(self):
        return np.dtype, ("u1", 0, 1)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=LOADERS)
def site(request, tmp_path, monkeypatch):
    """Write small files in the layout of CIFAR, and make torchvision take them for it."""
    dataset = getattr(torchvision.datasets, request.param)
    folder = tmp_path / "site" / dataset.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels_key = "labels" if request.param == "CIFAR10" else "fine_labels"
    truth = {}
    for split, files in (("train", dataset.train_list), ("test", dataset.test_list)):
        truth[split] = []
        for name, _ in files:
            data = rng.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
            labels = rng.integers(0, 10, 4).tolist()
            entry = {"data": data, labels_key: labels, "dtype": OldDtype()}
            (folder / name).write_bytes(pickle.dumps(entry))
            truth[split].append((data.reshape(4, 3, 32, 32), labels))
    meta = folder / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: [str(i) for i in range(10)]}))
    archive = tmp_path / "site" / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=dataset.base_folder)
    for key in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(dataset, key)]
        monkeypatch.setattr(dataset, key, sums)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(meta)})
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return dataset, LOADERS[request.param], archive, truth


@pytest.mark.parametrize("split", ["train", "test"])
def test_unpacked_files(site, split):
    _, load, archive, truth = site
    X, y = load(split, data_home=archive.parent, download=False)
    assert X.dtype == np.uint8
    assert y.dtype == np.int64
    np.testing.assert_array_equal(X, np.concatenate([images for images, _ in truth[split]]))
    np.testing.assert_array_equal(y, np.concatenate([labels for _, labels in truth[split]]))
    assert X.flags.c_contiguous


def test_archive_is_unpacked_without_network(site, tmp_path):
    _, load, archive, _ = site
    home = tmp_path / "home"
    home.mkdir()
    archive.rename(home / archive.name)
    X, _ = load("test", data_home=home, download=False)
    assert X.shape == (4, 3, 32, 32)


def test_download(site, tmp_path, monkeypatch, serve):
    dataset, load, archive, _ = site
    monkeypatch.setattr(dataset, "url", serve(archive.parent) + archive.name)
    X, _ = load("test", data_home=tmp_path / "home")
    assert X.shape == (4, 3, 32, 32)


def test_missing_files_without_network(site, tmp_path):
    dataset, load, _, _ = site
    with pytest.raises(DatasetNotFoundError, match="the download failed") as info:
        load(data_home=tmp_path / "home")
    assert f"Put the archive {dataset.filename}" in str(info.value)
    with pytest.raises(DatasetNotFoundError, match="download=False"):
        load(data_home=tmp_path / "other", download=False)
    assert not (tmp_path / "other").exists()


def test_other_files_are_not_unpickled(site):
    dataset, load, archive, _ = site
    path = archive.parent / dataset.base_folder / dataset.test_list[0][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated or corrupt") as info:
        load("train", data_home=archive.parent)
    assert str(path) in str(info.value)


def test_other_warnings_still_show(site):
    _, load, archive, _ = site
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load("test", data_home=archive.parent)
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["mine"]


@pytest.mark.parametrize("load", LOADERS.values())
def test_unknown_split(load):
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\]"):
        load("valid")
