"""Files of strangers: refused with a reason, before memory is taken and without running them."""

import json
import pickle
import re
import tracemalloc

import joblib
import numpy as np
import pytest
import torch
from file_parts import KEY, put_together, small, take_apart, write_raw
from safetensors.torch import save_file

from robust_ensembles import CLDLEnsembleClassifier, DVERGEEnsembleClassifier
from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.persistence import files, load
from robust_ensembles.state.container import MAX_TABLE

MANY = 10**12
ANY = "."
BY_SAFETENSORS = "[Dd]eserializ"
"""What is refused by safetensors itself, in its words."""

WEIGHT = "module.members.0.classifier.weight"


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def parts(digit_rows, tmp_path_factory):
    """A good file: its path and its parts."""
    X, _, y, _ = digit_rows
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    small().fit(X, y).save(path, optimizer_state=True)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "crafted.safetensors"


def refuse(path, reason, **params):
    """Check that a file is refused for a reason, without reading a tensor or taking memory."""

    def read(*args, **kwargs):
        raise AssertionError("tensors were read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "read_tensors", read)
        tracemalloc.start()
        try:
            with pytest.raises(ModelFileError, match=reason) as caught:
                load(path, **params)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert str(caught.value).startswith(f"{path} cannot be loaded: ")
    assert len(str(caught.value)) < 2000
    assert peak < 8 * 2**20 + 4 * min(path.stat().st_size, MAX_TABLE)


def test_the_parts_put_together_are_a_good_file(parts, path):
    load(put_together(path, *take_apart(parts)))


def as_the_header(payload, path, parts):
    table, _, data = take_apart(parts)
    put_together(path, table, pickle.dumps(payload, protocol=0).decode(), data)


PICKLES = {
    "protocol 0": lambda payload, path, _: path.write_bytes(pickle.dumps(payload, protocol=0)),
    "protocol 2": lambda payload, path, _: path.write_bytes(pickle.dumps(payload, protocol=2)),
    "protocol 5": lambda payload, path, _: path.write_bytes(pickle.dumps(payload, protocol=5)),
    "joblib": lambda payload, path, _: joblib.dump([payload], path),
    "torch": lambda payload, path, _: torch.save([payload], path),
    "table": lambda payload, path, _: write_raw(path, pickle.dumps(payload)),
    "header": as_the_header,
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_not_run(kind, parts, path, tmp_path):
    trace = tmp_path / "trace"
    PICKLES[kind](Payload(trace), path, parts)
    refuse(path, ANY if kind in ("table", "header") else "pickle and joblib")
    assert not trace.exists()


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_parts_of_a_file(size, parts, path):
    path.write_bytes(parts.read_bytes()[:size])
    refuse(path, ANY)


def test_a_file_with_more_at_its_end(parts, path):
    path.write_bytes(parts.read_bytes() + b"\0")
    refuse(path, "not fully covered|incomplete")


def test_other_safetensors_files(path):
    save_file({"weight": torch.zeros(2)}, path)
    refuse(path, "no ensemble of robust_ensembles")


def test_a_table_that_is_too_long(path):
    with path.open("wb") as file:
        file.write((MAX_TABLE + 1).to_bytes(8, "little"))
        file.truncate(MAX_TABLE + 100)  # a hole: takes no space
    refuse(path, f"more than the {MAX_TABLE}")


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b'{"__metadata__": [], "a": 1}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe",
        b"1" * 100_000,
    ],
    ids=lambda table: table[:20].decode("latin-1"),
)
def test_tables_that_are_none(table, path):
    refuse(write_raw(path, table), ANY)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, MANY])
def test_tables_longer_than_the_file(length, path):
    refuse(write_raw(path, b"{}", length=length), "a part of one")


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"shape": [MANY]}, BY_SAFETENSORS),
        ({"shape": [MANY], "data_offsets": [0, 4 * MANY]}, BY_SAFETENSORS),
        ({"shape": [2**32, 2**32]}, BY_SAFETENSORS),
        ({"shape": [2**64, 0]}, BY_SAFETENSORS),
        ({"shape": [-1, -8]}, BY_SAFETENSORS),
        ({"shape": [True, 80]}, BY_SAFETENSORS),
        ({"shape": [8.0, 10]}, BY_SAFETENSORS),
        ({"shape": "8"}, BY_SAFETENSORS),
        ({"data_offsets": [0]}, BY_SAFETENSORS),
        ({"data_offsets": [-320, 0]}, BY_SAFETENSORS),
        ({"dtype": "F4"}, "of the type"),
        ({"dtype": "I32", "shape": [1]}, BY_SAFETENSORS),
        ({"dtype": "F128"}, "of the type"),
        ({"dtype": ["F32"]}, "of the type"),
        ({"extra": 1}, "something else"),
        ({"shape": [0], "data_offsets": [0, 0]}, BY_SAFETENSORS),
    ],
)
def test_claims_of_a_tensor(claim, reason, parts, path):
    table, header, data = take_apart(parts)
    table[WEIGHT].update(claim)
    refuse(put_together(path, table, header, data), reason)


def test_tensors_that_overlap(parts, path):
    table, header, data = take_apart(parts)
    other = WEIGHT.replace("members.0", "members.1")
    table[WEIGHT]["data_offsets"] = table[other]["data_offsets"]
    refuse(put_together(path, table, header, data), BY_SAFETENSORS)


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/etc/passwd", "module/../x", "C:\\evil", "module..x", "", "a\0b", "m" * 10**4],
)
def test_names_that_are_paths(name, parts, path):
    table, header, data = take_apart(parts)
    table[name] = table.pop(WEIGHT)
    refuse(put_together(path, table, header, data), "tensor with the name")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.weight", "belong to nothing"),
        ("module.members.7.weight", "weights of 4 members"),
        ("module.members.0.weight", "have no place"),
        ("module.weight", "have no place"),
        ("module.members", "have no place"),
        ("auxiliary.weight", "trains nothing beside"),
    ],
)
def test_names_of_nothing(name, reason, parts, path):
    table, header, data = take_apart(parts)
    table[name] = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
    put_together(path, table, header, data)
    if name.startswith("auxiliary"):
        with pytest.raises(ModelFileError, match=reason):
            load(path)
    else:
        refuse(path, reason)


def test_metadata_that_are_no_text(parts, path):
    table, header, data = take_apart(parts)
    whole = {"__metadata__": {KEY: json.dumps(header), "more": None}, **table}
    refuse(write_raw(path, json.dumps(whole).encode(), data), BY_SAFETENSORS)


def test_weights_of_another_shape_or_kind(parts, path):
    table, header, data = take_apart(parts)
    table[WEIGHT]["shape"] = table[WEIGHT]["shape"][::-1]
    refuse(put_together(path, table, header, data), "has shape")
    table[WEIGHT].update(shape=table[WEIGHT]["shape"][::-1], dtype="I32")
    refuse(put_together(path, table, header, data), "holds torch.int32")
    lost = {name: entry for name, entry in table.items() if "classifier" not in name}
    size = 0
    for entry in lost.values():
        length = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"], size = [size, size + length], size + length
    refuse(put_together(path, lost, header, data[:size]), "are missing")


def params(**changes):
    return lambda header: header["estimator"]["params"].update(changes)


def estimator(**changes):
    return lambda header: header["estimator"].update(changes)


def net(**changes):
    return lambda header: header["net"].update(changes)


def fields(**changes):
    return lambda header: header.update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fields(format=3), "format version 3"),
        (fields(format=None), "no format version"),
        (estimator(kind="os.system"), "none that a file may name"),
        (estimator(kind="BaseEnsembleClassifier"), "none that a file may name"),
        (estimator(kind="PGD"), "none that a file may name"),
        (estimator(kind=["x"]), "none that a file may name"),
        (fields(extra=1), "other fields"),
        (fields(fit={}), "other fields"),
        (fields(fit=1), "other fields"),
        (fields(net=None), "a checkpoint of"),
        (fields(net=[]), "other fields"),
        (fields(estimator="a stranger's class"), "a checkpoint of a stranger's class"),
        (fields(estimator=1), "estimator in its header"),
        (estimator(kind="DVERGEEnsembleClassifier", extra=1), "other fields"),
        (estimator(params=[]), "params in its header"),
        (net(seed=-1), "its seed"),
        (net(seed=MANY), "its seed"),
        (net(history={}), "history in its header"),
        (net(history=[1]), "something else than rows"),
        (net(history=[{"epoch": {"object": "os", "params": {}}}]), "unknown kind"),
        (net(batch_size=0), "its batch_size"),
        (net(batch_size="32"), "its batch_size"),
        (net(extra=[]), "extra in its header"),
        (net(extra={"module.hidden": 1}), None),
        (net(extra={"module.hidden": {"tensor": "nowhere"}}), None),
        (estimator(input_shape=[MANY]), ANY),
        (estimator(input_shape=[0]), "whole numbers from 1"),
        (estimator(input_shape=[]), "whole numbers from 1"),
        (estimator(clip_values=[1, 0]), "low < high"),
        (estimator(layers=[["nowhere"]] * 3), None),
        (params(new=1), r"no parameters \['new'\]"),
        (params(checkpoint_dir="../elsewhere"), r"no parameters \['checkpoint_dir'\]"),
        (params(__class__="x"), "no parameters"),
        (params(n_estimators=MANY), "weights of 3 members"),
        (params(n_estimators=2), "weights of 3 members"),
        (params(n_estimators="3"), "n_estimators"),
        (params(module=[None, {"object": "PGD", "params": {}}, None]), "no network"),
        (params(module="os.system"), "module must be one of"),
        (params(module={"type": "Adam"}), "no network of this package"),
        (params(module={"type": "ReLU"}), "none that a file may name"),
        (params(module={"object": "PGD", "params": {"eps": 0.1}}), "no network"),
        (params(optimizer={"type": "MLP"}), None),
        (params(module_params={"dict": [["hidden_sizes", [MANY]]]}), "has shape"),
        (params(module_params={"dict": [["hidden_sizes", [10**30]]]}), ANY),
        (params(module_params={"dict": [["hidden_sizes", [8] * 10**5]]}), "larger networks"),
        (params(module_params={"dict": [["input_shape", [MANY, MANY]]]}), ANY),
        (params(module={"type": "CifarResNet"}, input_shape=None), ANY),
        (params(augmentation={"eval": "1"}), "unknown kind"),
        (params(augmentation={"object": "Transfer", "params": {}}), "none that a file may name"),
        (params(augmentation={"object": "External", "params": {}}), "none that a file may name"),
        (params(augmentation={"object": "RandomCrop", "params": {"p": 1}}), "no parameters"),
        (params(augmentation={"object": "RandomCrop", "params": [1]}), "by name"),
        (params(lr={"float": "1e400"}), "as a number"),
        (params(lr={"float": "nan"}), ANY),
        (params(device={"device": "no device"}), ANY),
        (params(lr_milestones={"array": {"dtype": "O", "values": []}}), "of the type"),
        (params(lr_milestones={"array": {"dtype": "<U999999", "values": ["a"] * 99}}), "claims 99"),
        (estimator(classes={"dtype": "<U999999", "values": ["a", "b"] * 99}), "claims 198"),
        (estimator(classes={"dtype": "<i8", "values": [1, 0]}), "in their order"),
        (estimator(classes={"dtype": "<i8", "values": [0]}), "in their order"),
        (estimator(classes={"dtype": "<i8", "values": [[0], [1]]}), "something else than numbers"),
        (estimator(classes={"dtype": "<i8", "values": list(range(11))}), ANY),
        (estimator(classes={"dtype": "<i8", "values": ["a", "b"]}), ANY),
        (estimator(classes=[0, 1]), "dtype and values"),
        (estimator(feature_names={"dtype": "object", "values": ["a"]}), "feature names"),
        (net(optimizer={}), None),
        (net(optimizer={"groups": [], "numbers": []}), None),
        (net(optimizer={"groups": [{}] * 3, "numbers": [[MANY, "step", 1]]}), None),
    ],
)
def test_headers(change, reason, parts, path):
    table, header, data = take_apart(parts)
    change(header)
    put_together(path, table, header, data)
    if reason is not None:
        refuse(path, reason)
    else:  # refused after the weights
        with pytest.raises(ModelFileError):
            load(path)


def test_a_deep_network_is_not_built(path):
    rng = np.random.default_rng(0)
    X = rng.random((8, 1, 8, 8), dtype=np.float32)
    small(module="resnet20", n_estimators=1).fit(X, np.arange(8) % 2).save(path)
    table, header, data = take_apart(path)
    header["estimator"]["params"].update(
        module={"type": "CifarResNet"},
        module_params={"dict": [["depth", 6 * 10**9 + 2]]},
    )
    refuse(put_together(path, table, header, data), "larger networks")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": 1, "format": 1}', "null", "", "1"])
def test_headers_that_are_none(text, parts, path):
    table, _, data = take_apart(parts)
    refuse(put_together(path, table, text, data), ANY)


def test_memory_of_another_optimizer(parts, path):
    table, header, data = take_apart(parts)
    name = "optimizer.0.exp_avg"
    table[name]["shape"] = [int(np.prod(table[name]["shape"]))]
    put_together(path, table, header, data)
    with pytest.raises(ModelFileError, match="unlike its parameter"):
        load(path)


def test_what_a_header_asks_of_a_users_network(digit_rows, path):
    X, _, y, _ = digit_rows
    seen = []

    def network(input_shape, n_classes, width=8):
        seen.append(torch.empty(0).device.type)
        return torch.nn.Sequential(
            torch.nn.Linear(input_shape[0], width), torch.nn.Linear(width, n_classes)
        )

    small(module=network, module_params={"width": 4}).fit(X, y).save(path)
    table, header, data = take_apart(path)
    header["estimator"]["params"]["module_params"] = {"dict": [["width", 10**11]]}
    put_together(path, table, header, data)
    seen.clear()
    refuse(path, "has shape", module=network)
    assert set(seen) == {"meta"}


@pytest.mark.parametrize("cls", [CLDLEnsembleClassifier, DVERGEEnsembleClassifier])
def test_another_class_than_was_saved(cls, parts, path):
    table, header, data = take_apart(parts)
    header["estimator"]["kind"] = cls.__name__
    header["estimator"]["params"].pop("formulation")
    put_together(path, table, header, data)
    missing = {
        CLDLEnsembleClassifier: "are missing",  # its label confusion model
        DVERGEEnsembleClassifier: "has no layers",
    }
    with pytest.raises(ModelFileError, match=missing[cls]):
        load(path)


def test_every_byte_of_the_table_and_the_header_may_be_wrong(parts, path):
    raw = bytearray(parts.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    rng = np.random.default_rng(0)
    outcomes = set()
    for position in rng.choice(8 + length, size=60, replace=False):
        changed = bytearray(raw)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            load(path)
            outcomes.add("loaded")
        except ModelFileError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_missing_files(path):
    with pytest.raises(FileNotFoundError, match=re.escape(path.name)):
        load(path)
