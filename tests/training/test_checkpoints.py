"""Files of checkpoints: whole or absent, whatever happens meanwhile."""

import errno
import io
import os
import pickle

import pytest
import torch

from robust_ensembles.state.checkpoints import CheckpointFolder, _digest

EPOCH_2 = {"epoch": 2, "weight": torch.arange(50.0), "name": "two"}


def names(folder):
    return sorted(file.name for file in folder.path.iterdir())


def epochs(folder):
    return sorted(int(name[6:11]) for name in names(folder) if name.startswith("epoch"))


def file_of(folder, epoch):
    (file,) = folder.path.glob(f"epoch-{epoch:05d}.*.pt")
    return file


@pytest.fixture
def folder(tmp_path):
    """A folder that does not exist yet, and then holds two epochs."""
    folder = CheckpointFolder(tmp_path / "new" / "fit")
    assert folder.read_newest() is None
    folder.write(1, {"epoch": 1})
    folder.write(2, EPOCH_2)
    return folder


def test_round_trip(folder):
    found = folder.read_newest()
    assert found["epoch"] == 2
    assert found["name"] == "two"
    assert torch.equal(found["weight"], EPOCH_2["weight"])


def test_keeps_the_last_two_and_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path)
    bests = [1, 2, 2, 2, 2, 6]
    kept = []
    for epoch, best in enumerate(bests, start=1):
        folder.write(epoch, {"epoch": epoch}, best=best)
        kept.append(epochs(folder))
        assert torch.load(tmp_path / "best.pt", weights_only=True) == {"epoch": best}
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]]
    assert len(names(folder)) == 3


def test_without_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2, 3, 4):
        folder.write(epoch, {"epoch": epoch}, best=1)
    assert epochs(folder) == [1, 3, 4]


@pytest.mark.parametrize("place", [0, 0.1, 0.5, 0.9, -1])
def test_altered_file_is_skipped(folder, place):
    file = file_of(folder, 2)
    content = bytearray(file.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{file.name} is skipped.*not what was written"):
        assert folder.read_newest() == {"epoch": 1}


@pytest.mark.parametrize("length", [0, 1, 500])
def test_torn_file_is_skipped(folder, length):
    file = file_of(folder, 2)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.warns(UserWarning, match="is skipped"):
        assert folder.read_newest() == {"epoch": 1}


def test_all_torn(folder):
    for file in folder.path.glob("epoch-*"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="is skipped") as caught:
        assert folder.read_newest() is None
    assert len(caught) == 2


def test_torn_file_makes_way(folder):
    folder.write(3, {"epoch": 3})
    file_of(folder, 3).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is skipped"):
        assert folder.read_newest()["epoch"] == 2
    folder.write(3, {"epoch": 3, "again": True})
    assert folder.read_newest() == {"epoch": 3, "again": True}
    assert epochs(folder) == [2, 3]


def test_later_epochs_of_a_former_course_make_way(folder):
    folder.write(1, {"epoch": 1, "again": True})
    assert folder.read_newest() == {"epoch": 1, "again": True}


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["VICTIM"],)


def test_code_is_not_run(folder, tmp_path, monkeypatch):
    """A file that was made on purpose, digest and all."""
    monkeypatch.setenv("VICTIM", str(tmp_path / "victim"))
    buffer = io.BytesIO()
    torch.save({"epoch": 9, "weight": Malicious()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Malicious(), protocol=2)):
        name = f"epoch-00009.{_digest(content)}.pt"
        (folder.path / name).write_bytes(content)
        with pytest.warns(UserWarning, match=f"{name} is skipped"):
            assert folder.read_newest()["epoch"] == 2
        (folder.path / name).unlink()
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk(folder, monkeypatch, call):
    before = names(folder)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match=r"epoch 3 cannot be written .*No space left") as info:
            folder.write(3, {"epoch": 3})
    assert info.value.errno == errno.ENOSPC
    assert names(folder) == before
    assert folder.read_newest()["epoch"] == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_interrupt_while_writing(folder, monkeypatch, call):
    before = names(folder)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            folder.write(3, {"epoch": 3})
    assert names(folder) == before


def test_what_a_killed_writer_left_is_removed(folder):
    before = names(folder)
    (folder.path / ".epoch-00003.0123456789abcdef.77.tmp").write_bytes(b"half")
    assert folder.read_newest()["epoch"] == 2
    assert names(folder) == before


def test_order_of_writing(folder, monkeypatch):
    """Content on the disk, then the name, then the name on the disk."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(descriptor):
        calls.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync")
        fsync(descriptor)

    def logged_replace(source, target):
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    folder.write(3, {"epoch": 3})
    assert calls == ["fsync", "replace", "fsync folder"]
