import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_ensembles.datasets import load_digits_images, load_image_npz
from robust_ensembles.exceptions import DatasetNotFoundError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg75.npz"


def jpeg_bytes(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def jpeg_arrays(n=5, size=32, grey=False):
    rng = np.random.default_rng(0)
    shape = (n, size, size) if grey else (n, size, size, 3)
    files = [jpeg_bytes(pixels) for pixels in rng.integers(0, 256, shape, dtype=np.uint8)]
    return {
        "test_jpeg": np.frombuffer(b"".join(files), np.uint8),
        "test_offsets": np.cumsum([0, *map(len, files)]),
        "test_labels": np.arange(n, dtype=np.uint8),
        "class_names": np.array(["a", "b"]),
    }, files


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 6, 7), None),
        ((4, 1, 6, 7), None),
        ((4, 3, 6, 7), None),
        ((4, 6, 7, 3), (0, 3, 1, 2)),
        ((4, 6, 7, 1), (0, 3, 1, 2)),
    ],
)
def test_arrays(save, shape, axes):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = save(train_images=images, train_labels=np.array([3, 1, 0, 2], np.int8))
    X, y = load_image_npz(path)
    expected = images.transpose(axes) if axes else images.reshape(4, -1, 6, 7)
    np.testing.assert_array_equal(X, expected)
    assert X.flags.c_contiguous
    assert y.dtype == np.int64
    assert y.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg(save, grey):
    arrays, files = jpeg_arrays(grey=grey)
    X, y = load_image_npz(save(**arrays), "test")
    assert X.shape == (5, 3, 32, 32)
    assert X.dtype == np.uint8
    for pixels, file in zip(X, files, strict=True):
        truth = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        np.testing.assert_array_equal(pixels, truth.transpose(2, 0, 1))
    assert y.tolist() == [0, 1, 2, 3, 4]


def test_part(save):
    path = save(**jpeg_arrays()[0])
    X, y = load_image_npz(path, "test")
    first, _ = load_image_npz(path, "test", n_samples=2)
    np.testing.assert_array_equal(first, X[:2])
    some, labels = load_image_npz(path, "test", indices=[4, 0, 4])
    np.testing.assert_array_equal(some, X[[4, 0, 4]])
    assert labels.tolist() == y[[4, 0, 4]].tolist()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_samples": 0}, "n_samples must be from 1 to 5, got 0"),
        ({"n_samples": 6}, "n_samples must be from 1 to 5, got 6"),
        ({"n_samples": 1, "indices": [0]}, "n_samples or indices, not both"),
        ({"indices": [5]}, "indices must be from 0 to 4"),
        ({"indices": [-1]}, "indices must be from 0 to 4"),
        ({"indices": [0.5]}, "indices must be one or more whole numbers"),
        ({"indices": []}, "indices must be one or more whole numbers"),
        ({"indices": [[1]]}, "indices must be one or more whole numbers"),
        ({"split": "train"}, "needs the keys 'train_images' and 'train_labels'.*'test_jpeg'"),
    ],
)
def test_wrong_arguments(save, kwargs, match):
    with pytest.raises(ValueError, match=match):
        load_image_npz(save(**jpeg_arrays()[0]), **{"split": "test", **kwargs})


@pytest.mark.parametrize(
    ("key", "change", "match"),
    [
        ("labels", lambda a: a[:-1], "test_offsets must be 5 whole numbers for 4 labels"),
        ("labels", lambda a: a.astype(float), "test_labels must be whole numbers"),
        ("labels", lambda a: np.tile(a[:, None], 2), "test_labels must be whole numbers of shape"),
        ("labels", lambda a: a[:, None, None], "test_labels must be whole numbers of shape"),
        ("labels", lambda a: a.astype(str), r"np.unique\(labels, return_inverse=True\)"),
        ("labels", lambda a: a.astype(object), r"objects.* np.unique\(labels, return_inverse=True"),
        ("labels", lambda a: np.eye(5)[a], r"by labels.argmax\(axis=1\)$"),
        ("labels", lambda a: np.eye(5, dtype=int)[a], r"by labels.argmax\(axis=1\)$"),
        ("labels", lambda a: a.astype(float), r"by labels.astype\(np.int64\)$"),
        ("offsets", lambda a: a[:-1], "test_offsets must be 6 whole numbers"),
        ("offsets", lambda a: a.astype(float), "test_offsets must be 6 whole numbers"),
        ("offsets", lambda a: a[::-1], "test_offsets must rise"),
        ("offsets", lambda a: a - 1, "test_offsets must rise"),
        ("offsets", lambda a: a + 1, "test_offsets must rise"),
        ("offsets", lambda a: a * 0, "test_offsets must rise"),
        ("offsets", lambda a: a - a % 64, "image . of split 'test' cannot be decoded"),
        ("jpeg", lambda a: a[:-1], "test_offsets must rise"),
        ("jpeg", lambda a: a.astype(int), "test_jpeg must be flat uint8"),
        ("jpeg", lambda a: a * 0, "image 0 of split 'test' cannot be decoded"),
    ],
)
def test_bad_jpeg_archives(save, key, change, match):
    arrays, _ = jpeg_arrays()
    arrays[f"test_{key}"] = change(arrays[f"test_{key}"])
    path = save(**arrays)
    with pytest.raises(ValueError, match=match) as info:
        load_image_npz(path, "test")
    assert str(path) in str(info.value)


def test_truncated_jpeg(save):
    arrays, files = jpeg_arrays(n=1)
    half = len(files[0]) // 2
    arrays |= {"test_jpeg": arrays["test_jpeg"][:half], "test_offsets": np.array([0, half])}
    with pytest.raises(ValueError, match="image 0 of split 'test' cannot be decoded"):
        load_image_npz(save(**arrays), "test")


def test_images_of_different_sizes(save):
    small, large = jpeg_arrays(n=1, size=8)[1][0], jpeg_arrays(n=1, size=16)[1][0]
    path = save(
        test_jpeg=np.frombuffer(small + large, np.uint8),
        test_offsets=np.array([0, len(small), len(small) + len(large)]),
        test_labels=np.array([0, 1]),
    )
    with pytest.raises(ValueError, match=r"image 1 .* has shape \(3, 16, 16\), others"):
        load_image_npz(path, "test")
    assert load_image_npz(path, "test", indices=[1])[0].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 5, 5), float), "must be uint8, got float64"),
        (np.zeros((3, 5, 5), np.uint8), "one image for each of the 4 labels, got shape (3, 5, 5)"),
        (np.zeros((4, 5), np.uint8), "must have shape (n, height, width), or four axes"),
        (np.zeros((4, 5, 5), object), "objects"),
    ],
)
def test_bad_image_arrays(save, images, message):
    path = save(train_images=images, train_labels=np.arange(4))
    with pytest.raises(ValueError, match=rf"train_images .*{re.escape(message)}"):
        load_image_npz(path)
    path = save(train_images=np.zeros((4, 5, 5, 2), np.uint8), train_labels=np.arange(4))
    with pytest.raises(ValueError, match="1 or 3 channels second or last"):
        load_image_npz(path)


def test_empty_split(save):
    arrays = {
        "jpeg": np.zeros(0, np.uint8),
        "offsets": np.zeros(1, int),
        "labels": np.zeros(0, int),
    }
    with pytest.raises(ValueError, match="has no images"):
        load_image_npz(save(**{f"test_{k}": v for k, v in arrays.items()}), "test")
    path = save(test_images=np.zeros((0, 5, 5), np.uint8), test_labels=np.zeros((0, 1), int))
    with pytest.raises(ValueError, match="test_labels is empty, so the split 'test' has no images"):
        load_image_npz(path, "test")


def test_files_that_are_no_archives(save, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        load_image_npz(tmp_path / "none.npz")
    path = save(**jpeg_arrays()[0])
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[200:300] = bytes(100)
    for bad in (content[: len(content) // 2], b"", b"text", bytes(damaged)):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be read as an image archive") as info:
            load_image_npz(path, "test")
        assert str(path) in str(info.value)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="one array, not an archive"):
        load_image_npz(tmp_path / "one.npy")


@pytest.mark.skipif(not SHARED.is_file(), reason="needs shared/data/cifar10_jpeg75.npz")
def test_real_cifar10_as_jpeg():
    X, y = load_image_npz(SHARED, "test", n_samples=500)
    assert X.shape == (500, 3, 32, 32)
    assert set(y.tolist()) == set(range(10))
    # CIFAR-10's published channel means.
    np.testing.assert_allclose(X.mean((0, 2, 3)) / 255, [0.491, 0.482, 0.447], atol=0.02)


def test_digits():
    X, y = load_digits_images()
    assert X.shape == (1797, 1, 8, 8)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    assert (X.min(), X.max()) == (0, 1)
    assert np.array_equal(X * 16, (X * 16).round())
    bunch = load_digits_images(return_X_y=False)
    np.testing.assert_array_equal(bunch.data, X)
    np.testing.assert_array_equal(bunch.target, y)
    assert bunch.target_names.tolist() == list(range(10))


def test_labels_in_a_column(tmp_path):
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.array([[2], [0], [1]]))
    _, y = load_image_npz(tmp_path / "a.npz")
    assert y.tolist() == [2, 0, 1]


@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_told_how_to_become_bytes(top, tmp_path):
    images = np.full((3, 4, 4), 0.5 * top)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(3))
    with pytest.raises(ValueError, match=r"\(255 \* images\).round\(\).astype\(np.uint8\)"):
        load_image_npz(tmp_path / "a.npz")


def test_other_keys_are_told_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros((3, 4, 4), np.uint8), y=np.arange(3))
    with pytest.raises(ValueError, match=r"np.savez\(path, train_images=X, train_labels=y\)"):
        load_image_npz(tmp_path / "a.npz")
