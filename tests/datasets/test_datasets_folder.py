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


def one_picture(tmp_path, image, suffix=".png", **options):
    """The folder with one image in it."""
    (tmp_path / "a").mkdir(exist_ok=True)
    image.save(tmp_path / "a" / f"0{suffix}", **options)
    return tmp_path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_levels_of_16_bits_are_scaled(tmp_path, suffix):
    levels = np.array([[0, 128, 129], [257, 30000, 65535]], np.uint16)
    folder = one_picture(tmp_path, Image.fromarray(levels), suffix)
    X, _ = load_image_folder(folder, grey=True)
    assert X[0, 0].tolist() == [[0, 0, 1], [1, 117, 255]]
    np.testing.assert_array_equal(load_image_folder(folder)[0][0], np.repeat(X[0], 3, axis=0))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype):
    folder = one_picture(tmp_path, Image.fromarray(np.ones((2, 3), dtype)), ".tif")
    with pytest.raises(ValueError, match=r"0.tif cannot .* not known; save it with 8 bits"):
        load_image_folder(folder)


def test_images_are_turned_as_exif_says(tmp_path):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    X, _ = load_image_folder(one_picture(tmp_path, image, exif=exif), grey=True)
    assert X[0, 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_transparent_images_are_put_on_white(tmp_path):
    pixels = np.array([[[200, 100, 0, 255], [9, 9, 9, 0], [0, 0, 0, 51]]], np.uint8)
    X, _ = load_image_folder(one_picture(tmp_path, Image.fromarray(pixels)))
    assert X[0, :, 0].T.tolist() == [[200, 100, 0], [255, 255, 255], [204, 204, 204]]
    palette = Image.new("P", (2, 1))
    palette.putpixel((1, 0), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    X, _ = load_image_folder(one_picture(tmp_path, palette, transparency=1))
    assert X[0, :, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    X, _ = load_image_folder(one_picture(tmp_path, grey, transparency=7), grey=True)
    assert X[0, 0].tolist() == [[255, 8]]
    deep = Image.fromarray(np.array([[256, 257]], np.uint16))  # alike in 8 bits
    X, _ = load_image_folder(one_picture(tmp_path, deep, transparency=256), grey=True)
    assert X[0, 0].tolist() == [[255, 1]]


def test_what_is_hidden_is_left_out(folder, caplog):
    path, drawn = folder
    expected = load_image_folder(path)
    (path / ".ipynb_checkpoints").mkdir()
    for hidden in ("b/._1.png", "b/.thumbs/1.png", ".thumbs/1.png"):
        (path / hidden).parent.mkdir(exist_ok=True)
        Image.fromarray(drawn[0][:2]).save(path / hidden)
    caplog.clear()
    X, y = load_image_folder(path)
    np.testing.assert_array_equal(X, expected[0])
    assert y.tolist() == expected[1].tolist()
    for name in ("b/2.gif", "b/3.GIF", "a/README"):
        (path / name).write_text("no image")
    load_image_folder(path)
    first, second = caplog.messages
    assert f"{path}: files that are not taken: 1 .txt; images are those that end in .jpg" in first
    assert "not taken: 2 .gif, 1 .txt, 1 without an ending;" in second


def test_all_is_hidden(tmp_path):
    (tmp_path / ".a").mkdir()
    with pytest.raises(ValueError, match=r"All sub-folders .* are hidden"):
        load_image_folder(tmp_path)


def test_a_folder_is_named_relative_to_where_we_are(folder, monkeypatch):
    path, _ = folder
    expected, _ = load_image_folder(path)
    hidden = path / ".hidden"
    hidden.mkdir()
    for name in ("a", "b"):
        (path / name).rename(hidden / name)
    monkeypatch.chdir(hidden)
    for name in (".", hidden, "../.hidden"):
        np.testing.assert_array_equal(load_image_folder(name)[0], expected)
