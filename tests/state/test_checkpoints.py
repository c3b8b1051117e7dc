"""Files of checkpoints: whole or absent, whatever happens meanwhile."""

import errno
import io
import itertools
import os
import pickle

import pytest
import torch

from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.state.folder import CheckpointFolder, digest
from robust_ensembles.state.model_file import FitState, model_bytes, read_checkpoint
from robust_ensembles.state.net_state import NetState

WEIGHT = torch.arange(50.0)


def content(epoch, name="", weight=WEIGHT, rows=None):
    """The bytes of a checkpoint after some epochs, with a name that tells it apart."""
    fit = FitState({"name": name}, epoch, seed=0, finished=False, callbacks={})
    history = [{"train_loss": 1.0}] * (epoch if rows is None else rows)
    net = NetState(0, 32, history, {"groups": [], "numbers": []}, {}) if epoch else None
    return model_bytes("an estimator of nothing", net, {"module.weight": weight}, fit)


def newest(folder):
    """Epoch and name of the newest whole checkpoint."""
    header, _ = folder.read_newest()
    return header.fit.epoch, header.fit.about["name"]


def names(folder):
    return sorted(file.name for file in folder.path.iterdir())


def epochs(folder):
    return sorted(int(name[6:11]) for name in names(folder) if name.startswith("epoch"))


def file_of(folder, epoch):
    (file,) = folder.path.glob(f"epoch-{epoch:05d}.*.safetensors")
    return file


@pytest.fixture
def folder(tmp_path):
    """A folder that does not exist yet, and then holds two epochs."""
    folder = CheckpointFolder(tmp_path / "new" / "fit")
    assert folder.read_newest() is None
    folder.write(1, content(1))
    folder.write(2, content(2, "two"))
    return folder


def test_round_trip(folder):
    header, tensors = folder.read_newest()
    assert header.fit.epoch == 2
    assert header.fit.about == {"name": "two"}
    assert torch.equal(tensors["module.weight"], WEIGHT)


def test_keeps_the_last_two_and_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path)
    bests = [1, 2, 2, 2, 2, 6]
    kept = []
    for epoch, best in enumerate(bests, start=1):
        folder.write(epoch, content(epoch), best=best)
        kept.append(epochs(folder))
        assert read_checkpoint(tmp_path / "best.safetensors")[0].fit.epoch == best
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]]
    assert len(names(folder)) == 3
    folder.write(7, content(7), best=5, last=1)
    assert epochs(folder) == [5, 7]


def test_former_checkpoints_make_way(tmp_path):
    """The link to the best one is to a file of either format."""
    folder = CheckpointFolder(tmp_path)
    (tmp_path / f"epoch-00001.{digest(b'1')}.pt").write_bytes(b"1")
    folder.write(2, content(2), best=1)
    assert (tmp_path / "best.pt").read_bytes() == b"1"
    folder.write(3, content(3), best=3)
    assert names(folder)[0] == "best.safetensors"
    assert epochs(folder) == [2, 3]
    assert len(names(folder)) == 3


def test_without_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2, 3, 4):
        folder.write(epoch, content(epoch), best=1)
    assert epochs(folder) == [1, 3, 4]


def altered(place):
    """One bit is another one."""

    def damage(content):
        content = bytearray(content)
        content[int(place * (len(content) - 1))] ^= 1
        return content

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(altered(place) for place in (0, 0.1, 0.5, 0.9, 1)),
        *(lambda content, n=n: content[:n] for n in (0, 1, 500)),
    ],
)
def test_altered_or_torn_file_is_skipped(folder, damage):
    file = file_of(folder, 2)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"{file.name} is skipped.*not what was written"):
        assert newest(folder) == (1, "")


def test_all_torn(folder):
    for file in folder.path.glob("epoch-*"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="is skipped") as caught:
        assert folder.read_newest() is None
    assert len(caught) == 2


def test_torn_file_makes_way(folder):
    folder.write(3, content(3))
    file_of(folder, 3).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is skipped"):
        assert newest(folder) == (2, "two")
    folder.write(3, content(3, "again"))
    assert newest(folder) == (3, "again")
    assert epochs(folder) == [2, 3]


def test_later_epochs_of_a_former_course_make_way(folder):
    folder.write(1, content(1, "again"))
    assert newest(folder) == (1, "again")


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_history_of_other_epochs_is_skipped(folder, rows):
    folder.write(3, content(3, rows=rows))
    with pytest.warns(UserWarning, match=f"{rows} rows of history for 3 epochs"):
        assert newest(folder) == (2, "two")


def test_a_saved_model_is_no_checkpoint(tmp_path):
    net = NetState(0, 32, [], {"groups": [], "numbers": []}, {})
    (tmp_path / "model.safetensors").write_bytes(model_bytes({}, net, {}))
    with pytest.raises(ModelFileError, match="it is a model"):
        read_checkpoint(tmp_path / "model.safetensors")


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["VICTIM"],)


def test_code_is_not_run(folder, tmp_path, monkeypatch):
    """A file that was made on purpose, digest and all."""
    monkeypatch.setenv("VICTIM", str(tmp_path / "victim"))
    buffer = io.BytesIO()
    torch.save({"format": 1, "epoch": 9, "weight": Malicious()}, buffer)
    raws = buffer.getvalue(), pickle.dumps(Malicious(), protocol=2)
    for raw, suffix in itertools.product(raws, ("pt", "safetensors")):
        name = f"epoch-00009.{digest(raw)}.{suffix}"
        (folder.path / name).write_bytes(raw)
        with pytest.warns(UserWarning, match=f"{name} is skipped"):
            assert newest(folder) == (2, "two")
        (folder.path / name).unlink()
    assert not (tmp_path / "victim").exists()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "message"),
    [(FULL, r"epoch 3 cannot be written .*No space left"), (KeyboardInterrupt(), "^$")],
    ids=["full disk", "interrupt"],
)
def test_a_write_that_ends_early(folder, monkeypatch, call, error, message):
    before = names(folder)

    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(type(error), match=message) as info:
            folder.write(3, content(3))
    assert getattr(info.value, "errno", None) == getattr(error, "errno", None)
    assert names(folder) == before
    assert newest(folder) == (2, "two")


def test_what_a_killed_writer_left_is_removed(folder):
    before = names(folder)
    (folder.path / ".epoch-00003.0123456789abcdef.77.tmp").write_bytes(b"half")
    assert newest(folder) == (2, "two")
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
    folder.write(3, content(3))
    assert calls == ["fsync", "replace", "fsync folder"]
