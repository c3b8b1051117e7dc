"""Files of data sets that were altered by hand: refused, or read as what they say."""

import gzip
import hashlib
import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import mutations
import numpy as np
import pytest
import strange
import torchvision.datasets
from endings import ends_well
from hypothesis import strategies as st
from PIL import Image

from robust_ensembles.datasets import load_cifar10, load_image_folder, load_image_npz, load_mnist
from robust_ensembles.datasets.mnist import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1], np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def check_images(X, y):
    assert X.dtype == np.uint8
    assert X.ndim == 4
    assert X.shape[1] in (1, 3)
    assert y.dtype == np.int64
    assert y.shape == (len(X),)


def test_idx_files(explore, tmp_path):
    files = {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx1-ubyte": idx(LABELS)}

    def check(change, of, compressed, sizes):
        for name, content in files.items():
            raw = content
            if name.split("-")[1] in of:
                if sizes is not None:
                    raw = (
                        raw[:4]
                        + b"".join(n.to_bytes(4, "big") for n in sizes)
                        + raw[4 + 4 * len(sizes) :]
                    )
                raw = change(gzip.compress(raw, mtime=0) if compressed else raw)
            (tmp_path / name).write_bytes(raw)
            ends_well(read_idx, tmp_path / name, 3 if "images" in name else 1)
        ended = ends_well(load_mnist, data_home=tmp_path, download=False)
        if ended:
            check_images(*ended.value)
            assert ended.value[1].max(initial=0) <= 9

    explore(
        check,
        change=mutations.byte_changes(head=16),
        of=st.sampled_from([["images"], ["labels"], ["images", "labels"]]),
        compressed=st.booleans(),
        sizes=st.one_of(st.none(), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3)),
    )


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def archives():
    """The two layouts."""
    one = jpeg()
    ends = np.arange(5) * len(one)
    decoded = {"train_images": IMAGES, "train_labels": LABELS}
    encoded = {"train_jpeg": np.tile(one, 4), "train_offsets": ends, "train_labels": LABELS}
    return decoded, encoded


def as_npz(arrays, compressed):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else 0) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array))
    return buffer.getvalue()


@st.composite
def npz_bytes(draw):
    """An archive with other arrays, other bytes, or both."""
    arrays = dict(draw(st.sampled_from(archives())))
    if draw(st.booleans()):
        name = draw(st.sampled_from([*arrays, "train_images", "../../evil", "a/b"]))
        arrays[name] = draw(strange.arrays())
    if draw(st.integers(0, 5)) == 0:
        del arrays[draw(st.sampled_from(list(arrays)))]
    for name in ("train_offsets", "train_jpeg"):
        if name in arrays and draw(st.integers(0, 2)) == 0:
            array = arrays[name].copy()
            if array.ndim == 1 and array.size and array.dtype.kind in "iu":
                array[draw(mutations.MARKS) % len(array)] = draw(st.integers(0, 127))
            arrays[name] = array
    raw = as_npz(arrays, draw(st.booleans()))
    return draw(mutations.byte_changes())(raw) if draw(st.booleans()) else raw


def test_npz_files(explore, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "images.npz"

    def check(raw, split, n_samples, indices):
        path.write_bytes(raw)
        before = set(tmp_path.rglob("*"))
        ended = ends_well(load_image_npz, path, split, n_samples=n_samples, indices=indices)
        if ended:
            check_images(*ended.value)
        assert set(tmp_path.rglob("*")) == before

    explore(
        check,
        raw=npz_bytes(),
        split=st.sampled_from(["train"] * 6 + ["test", "", "../x", None, 3]),
        n_samples=st.one_of(st.none(), st.none(), st.just(2), strange.NONSENSE),
        indices=st.one_of(st.none(), st.none(), st.just([1, 0]), strange.NONSENSE),
    )


def picture(kind, mode):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).convert(mode).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {
    ".png": [picture("PNG", mode) for mode in ("L", "RGB", "RGBA", "P", "1", "I;16")],
    ".jpg": [picture("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
    ".bmp": [picture("BMP", mode) for mode in ("L", "RGB", "P")],
    ".tif": [picture("TIFF", mode) for mode in ("L", "RGB", "CMYK")],
    ".ppm": [picture("PPM", mode) for mode in ("L", "RGB")],
    ".webp": [picture("WEBP", "RGB")],
}


@st.composite
def picture_files(draw):
    """Some names with bytes: one file in four is damaged, some have the wrong suffix."""
    files = {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(list(PICTURES)))
        raw = draw(st.sampled_from(PICTURES[kind]))
        if draw(st.integers(0, 3)) == 0:
            raw = draw(mutations.byte_changes(head=60))(raw)
        if draw(st.integers(0, 9)) == 0:
            kind = draw(st.sampled_from([*PICTURES, ".txt", ""]))
        files[f"{draw(st.sampled_from(['cat', 'dog', 'cat/deep', '.']))}/{number}{kind}"] = raw
    return files


def test_image_folders(explore, tmp_path):
    def check(files, size, grey):
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            for file, raw in files.items():
                path = Path(name, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)
            ended = ends_well(load_image_folder, name, size=size, grey=grey)
        if ended:
            X, y = ended.value
            assert X.dtype == np.uint8
            assert X.shape[:2] == (len(y), 1 if grey else 3)
            assert set(y) <= {"cat", "dog"}

    explore(
        check,
        files=picture_files(),
        size=st.one_of(st.none(), st.just(4), st.just(4), strange.NONSENSE),
        grey=st.one_of(st.booleans(), st.booleans(), strange.NONSENSE),
    )


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Small files that stand for the published ones."""
    rows = np.zeros((2, 3072), np.uint8)
    batch = pickle.dumps({"data": rows, "labels": [0, 1]}, protocol=2)
    meta = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    cifar = torchvision.datasets.CIFAR10
    files = {"data_batch_1": batch, "test_batch": batch, "batches.meta": meta}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    meta_of = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar, "meta", meta_of)
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    return folder, files


def test_cifar_files(explore, published, tmp_path):
    folder, files = published
    trace = tmp_path / "trace"

    def check(name, change, pickled):
        for each, content in files.items():
            raw = content
            if each == name:
                raw = mutations.pickled(trace) if pickled else change(content)
            (folder / each).write_bytes(raw)
        altered = (folder / name).read_bytes() != files[name]
        ended = ends_well(load_cifar10, data_home=tmp_path, download=False)
        assert not trace.exists(), "code was run"
        assert bool(ended) != altered
        if ended:
            check_images(*ended.value)

    explore(
        check,
        name=st.sampled_from(sorted(files)),
        change=mutations.byte_changes(),
        pickled=st.sampled_from([False, False, True]),
    )
