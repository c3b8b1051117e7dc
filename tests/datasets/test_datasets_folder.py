import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_ensembles.datasets import load_image_folder
from robust_ensembles.exceptions import DatasetNotFoundError


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images of 4 x 6 pixels; what was drawn, in the order of the files."""
    rng = np.random.default_rng(0)
    drawn = []
    for name in ("b/1.png", "b/deep/0.png", "a/x.PNG"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        drawn.append(pixels)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path, [drawn[2], drawn[0], drawn[1]]


def test_images_and_names(folder):
    path, drawn = folder
    X, y = load_image_folder(path)
    np.testing.assert_array_equal(X, np.stack(drawn).transpose(0, 3, 1, 2))
    assert X.dtype == np.uint8
    assert y.tolist() == ["a", "b", "b"]


def test_grey_and_resized(folder):
    path, drawn = folder
    X, _ = load_image_folder(str(path), size=3, grey=True)
    expected = Image.fromarray(drawn[0]).convert("L").resize((3, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(X[0, 0], np.asarray(expected))
    assert X.shape == (3, 1, 3, 3)


def test_sizes_that_differ(folder):
    path, _ = folder
    Image.new("RGB", (5, 7)).save(path / "b" / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png has 7 x 5 pixels, .* has 4 x 6.*size=32"):
        load_image_folder(path)
    assert load_image_folder(path, size=4)[0].shape == (4, 3, 4, 4)


def test_bad_folders(folder, tmp_path_factory):
    path, _ = folder
    with pytest.raises(DatasetNotFoundError, match="is no folder"):
        load_image_folder(path / "none")
    with pytest.raises(ValueError, match="sub-folder of images for each class"):
        load_image_folder(tmp_path_factory.mktemp("empty"))
    (path / "c").mkdir()
    with pytest.raises(ValueError, match=r"sub-folder of images for each class.*c"):
        load_image_folder(path)
    (path / "c" / "torn.png").write_bytes(Path(path / "b" / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"torn.png cannot be read as an image"):
        load_image_folder(path)
    (path / "c" / "torn.png").unlink()
    with pytest.raises(ValueError, match="size must be at least 1"):
        load_image_folder(path, size=0)
    with pytest.raises(ValueError, match="grey must be True or False"):
        load_image_folder(path, grey="yes")


def test_parts_are_no_classes(folder, tmp_path_factory):
    path, _ = folder
    X, _ = load_image_folder(path)
    whole = tmp_path_factory.mktemp("whole")
    for part in ("train", "Test"):
        shutil.copytree(path, whole / part)
    with pytest.raises(ValueError, match=r"Test and train, look like parts .* --test .*test"):
        load_image_folder(whole)
    np.testing.assert_array_equal(load_image_folder(whole / "train")[0], X)
    (whole / "Test").rename(whole / "cat")  # one of them is a class, so both may be
    assert set(load_image_folder(whole)[1]) == {"train", "cat"}
