"""Files of models that were altered by hand: refused, or loaded as something that works."""

import copy
import functools
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import mutations
import numpy as np
import pytest
from endings import check_predictions, ends_well
from file_parts import put_together, take_apart
from hypothesis import strategies as st
from small import CLASSES, make, rows

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.persistence import load


@functools.cache
def saved(cls):
    """The bytes of a good file, its parts, and what its estimator predicts."""
    X, y = rows()
    estimator = make(cls).fit(X, np.array(["a", "b", "c"])[y])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        estimator.save(path, optimizer_state=True)
        return path.read_bytes(), take_apart(path), estimator.predict_proba(X)


def check_loaded(path, *, trains=True):
    """Load; what comes back predicts and trains, or says why not. Returns it, or None."""
    trace = path.parent / "trace"
    ended = ends_well(_load_quietly, path)
    assert not trace.exists(), "code was run"
    if not ended:
        assert isinstance(ended.error, ModelFileError) or "load(path, module" in str(ended.error)
        return None
    estimator = ended.value
    X = np.random.default_rng(1).random((6, *estimator.input_shape_), dtype=np.float32)
    if ends_well(estimator.predict, X):
        check_predictions(estimator, X, len(X))
    if trains:
        ends_well(
            estimator.partial_fit, X, estimator.classes_[np.arange(6) % len(estimator.classes_)]
        )
    return estimator


def _load_quietly(path):
    """Without the warning that names what a file could not hold."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*could not hold")
        return load(path)


KINDS = st.one_of(st.just(VanillaEnsembleClassifier), st.sampled_from(CLASSES))


def test_files_with_wrong_bytes(explore, tmp_path):
    path = tmp_path / "crafted.safetensors"

    def check(cls, change, pickled):
        raw, _, proba = saved(cls)
        altered = change(raw)
        if pickled:
            altered = mutations.pickled(tmp_path / "trace") + altered
        path.write_bytes(altered)
        estimator = check_loaded(path, trains=altered != raw)
        if altered == raw:
            assert np.array_equal(estimator.predict_proba(rows()[0]), proba)

    pickled = st.sampled_from([False] * 9 + [True])
    explore(check, cls=KINDS, change=mutations.byte_changes(head=4000), pickled=pickled)


def _is_cheap(plain):
    """Whether training on with such numbers takes no hours."""
    if isinstance(plain, dict):
        return all(map(_is_cheap, plain.values()))
    if isinstance(plain, list):
        return all(map(_is_cheap, plain))
    return not isinstance(plain, (int, float)) or not 40 < plain < 2**63


def test_files_with_another_header(explore, tmp_path):
    path = tmp_path / "crafted.safetensors"

    def check(cls, alter, other):
        _, (table, header, data), _ = saved(cls)
        changed = alter(header)
        about = changed.get("estimator") if isinstance(changed, dict) else None
        if other is not None and isinstance(about, dict):
            about["kind"] = other.__name__
        put_together(path, table, mutations.as_json(changed), data)
        params = about.get("params") if isinstance(about, dict) else None
        check_loaded(path, trains=_is_cheap(params))

    other = st.one_of(st.none(), st.none(), st.sampled_from(CLASSES))
    explore(check, cls=KINDS, alter=mutations.value_changes(), other=other)


def test_files_with_another_table(explore, tmp_path):
    path = tmp_path / "crafted.safetensors"

    def check(cls, alter, wrong_length):
        _, (table, header, data), _ = saved(cls)
        whole = alter({"__metadata__": {"robust_ensembles": mutations.as_json(header)}, **table})
        text = mutations.as_json(whole).encode()
        path.write_bytes(
            (len(text) + wrong_length).to_bytes(8, "little", signed=True) + text + data
        )
        check_loaded(path)

    lengths = st.sampled_from([0] * 8 + [1, -1, 8, 2**40, 2**62])
    explore(check, cls=KINDS, alter=mutations.value_changes(), wrong_length=lengths)


_IN_LITTLE_MEMORY = """
    import resource, sys
    from pathlib import Path
    from robust_ensembles.exceptions import ModelFileError
    from robust_ensembles.persistence import load

    good, *files = sorted(Path(sys.argv[1]).glob("*.safetensors"))
    load(good)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    refused = 0
    for file in files:
        try:
            load(file)
        except ModelFileError:
            refused += 1
    print(refused, len(files))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux's way to limit memory"
)
def test_huge_claims_take_no_memory(tmp_path):
    """With every number of the header and of the table at 10^12, one after the other."""
    _, (table, header, data), _ = saved(VanillaEnsembleClassifier)
    put_together(tmp_path / "0.safetensors", table, header, data)
    number = 0
    for whole in (header, table):
        for path in mutations._places(whole):
            if type(mutations._at(whole, path)) is int:
                number += 1
                changed = _with(whole, path, mutations.MANY)
                parts = (changed, header) if whole is table else (table, changed)
                put_together(tmp_path / f"1-{number:03}.safetensors", *parts, data)
    script = textwrap.dedent(_IN_LITTLE_MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, files = map(int, done.stdout.split())
    assert files == number > 80
    # some numbers, such as those of the history, may be anything
    assert refused > files / 2


def _with(plain, path, value):
    plain = copy.deepcopy(plain)
    mutations._at(plain, path[:-1])[path[-1]] = value
    return plain
