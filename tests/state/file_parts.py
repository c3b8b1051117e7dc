"""Small fitted estimators, and files of theirs taken apart and put together by hand."""

import json

from small_estimators import ADVERSARIAL

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD

KEY = "robust_ensembles"


def small(cls=VanillaEnsembleClassifier, **params):
    """Three MLPs of 8 units, one epoch, and a weak attack where the method has one."""
    settings = {
        "module_params": None if "module" in params else {"hidden_sizes": (8,)},
        "max_epochs": 1,
        "batch_size": 32,
        "lr": 0.01,
        "device": "cpu",
        "random_state": 0,
    }
    if cls in ADVERSARIAL:
        settings["attack"] = PGD(eps=0.01, n_steps=1)
    return cls(**{**settings, **params})


def take_apart(path):
    """The table without metadata, the header, and the bytes of the numbers."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    header = json.loads(table.pop("__metadata__")[KEY])
    return table, header, raw[8 + length :]


def put_together(path, table, header, data):
    """Write such parts; a header that is a string is written as it is."""
    text = header if isinstance(header, str) else json.dumps(header)
    whole = {"__metadata__": {KEY: text}, **table}
    write_raw(path, json.dumps(whole).encode(), data)
    return path


def write_raw(path, table, data=b"", length=None):
    """Write a table of bytes, with another length before it if one is given."""
    size = len(table) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + table + data)
    return path
