"""Folders of checkpoints that were altered by hand: skipped with a warning, refused, or resumed."""

import functools
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import mutations
import torch
from endings import check_predictions, ends_well
from file_parts import put_together, take_apart
from hypothesis import strategies as st
from small import make, rows

from robust_ensembles.state.folder import CheckpointFolder, digest


@functools.cache
def saved():
    """Files of a fit that was stopped after two of three epochs, and the end of a whole one."""
    X, y = rows()
    with tempfile.TemporaryDirectory() as folder:
        with patch.object(CheckpointFolder, "_tidy", lambda *args: None):
            make(max_epochs=3, checkpoint_dir=folder).fit(X, y)
        files = {path.name: path.read_bytes() for path in Path(folder).glob("epoch-*")}
    older = {name: raw for name, raw in files.items() if "00003" not in name}
    whole = make(max_epochs=3).fit(X, y)
    return older, {n: t.clone() for n, t in whole.module_.state_dict().items()}


def resumed(folder):
    """Fit with these checkpoints; skipped files may be warned of, nothing else."""
    estimator = make(max_epochs=3, checkpoint_dir=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the checkpoint .* is skipped")
        return estimator.fit(*rows())


def fresh(folder):
    for file in folder.iterdir():
        file.rmdir() if file.is_dir() else file.unlink()


def test_checkpoints(explore, tmp_path):
    trace = tmp_path / "trace"
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def check(change, names, new_name, pickled):
        older, end = saved()
        fresh(folder)
        for number, (name, raw) in enumerate(older.items()):
            altered = raw
            if number in names:
                altered = mutations.pickled(trace) if pickled else change(raw)
            (folder / name).write_bytes(altered)
        (folder / new_name).write_bytes(change(next(iter(older.values()))))
        ended = ends_well(resumed, folder)
        assert not trace.exists(), "code was run"
        if ended:  # nothing is trained from nonsense: the same to the bit
            state = ended.value.module_.state_dict()
            assert all(torch.equal(state[n], end[n]) for n in end)

    new_names = [
        "epoch-00009.0123456789abcdef.safetensors",
        "epoch-00009.0123456789abcdef.pt",
        "epoch-x.safetensors",
        "best.safetensors",
        ".epoch-1.tmp",
        "a",
    ]
    explore(
        check,
        change=mutations.byte_changes(),
        names=st.sets(st.integers(0, 2)),
        new_name=st.sampled_from(new_names),
        pickled=st.sampled_from([False] * 5 + [True]),
    )


def test_forged_checkpoints(explore, tmp_path):
    """The name holds the digest of the content, so it may be anything that is read."""
    folder, file = tmp_path / "checkpoints", tmp_path / "forged"
    folder.mkdir()

    def check(alter, part):
        older, _ = saved()
        fresh(folder)
        name, raw = max(older.items())
        file.write_bytes(raw)
        table, header, data = take_apart(file)
        header = _altered(header, alter, part)
        raw = put_together(file, table, mutations.as_json(header), data).read_bytes()
        (folder / f"{name.split('.')[0]}.{digest(raw)}.safetensors").write_bytes(raw)
        ended = ends_well(resumed, folder)
        if ended and ends_well(ended.value.predict, rows()[0]):
            check_predictions(ended.value, rows()[0], 9)

    # what callbacks remember, and the numbers of an optimizer, are taken at their word
    parts = ["about", "history", "extra", "estimator", "rest", "whole"]
    explore(check, alter=mutations.value_changes(), part=st.sampled_from(parts))


def _altered(header, alter, part):
    if part == "whole":
        return alter({"format": 2, "net": None, "fit": {"epoch": 2}})
    if part == "estimator":
        return {**header, part: alter(header[part])}
    if part in ("history", "extra"):
        return {**header, "net": {**header["net"], part: alter(header["net"][part])}}
    fit = header["fit"]
    if part == "about":
        return {**header, "fit": {**fit, part: alter(fit[part])}}
    plain = {name: fit[name] for name in ("epoch", "seed", "finished")}
    rest = alter(plain)
    kept = {name: value for name, value in fit.items() if name not in plain}
    return {**header, "fit": {**kept, **rest} if isinstance(rest, dict) else rest}
