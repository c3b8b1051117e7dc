"""Conversion of files of format 1 to the present format. To be removed in version 0.2.

A model's header was flat, and a checkpoint was a file of `torch.save`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from .net_state import AUXILIARY, CALLBACKS, METHOD, MODULE, describe_parts
from .values import TensorsAside

FORMER, FORMER_SUFFIX = 1, ".pt"
"""The former format version, which is still read, and the suffix of its checkpoints."""

_OF_THE_ESTIMATOR = (
    "kind",
    "params",
    "omitted",
    "classes",
    "feature_names",
    "input_shape",
    "clip_values",
    "layers",
)
_OF_THE_NET = ("seed", "history", "optimizer")


def upgrade_header(plain: dict[str, Any]) -> dict[str, Any]:
    """Convert the header of a model of format 1.

    Parameters
    ----------
    plain : dict
        From JSON.

    Returns
    -------
    plain : dict
        In the present format, to be checked.

    Raises
    ------
    ValueError
    """
    names = {*_OF_THE_ESTIMATOR, *_OF_THE_NET, "format", "versions"}
    if set(plain) != names:
        raise ValueError(f"its header has other fields than {sorted(names)}")
    rows = plain["history"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its history has something else than rows")
    batches = [batch for row in rows for batch in row.get("batches", [])]
    net = {
        "seed": plain["seed"],
        "batch_size": _largest(batches),
        "history": [{n: value for n, value in row.items() if n != "batches"} for row in rows],
        "optimizer": plain["optimizer"],
        "extra": {},
    }
    estimator = {name: plain[name] for name in _OF_THE_ESTIMATOR}
    kept = {"format": plain["format"], "versions": plain["versions"]}
    return {**kept, "estimator": estimator, "net": net, "fit": None}


def _largest(batches: list[dict[str, Any]]) -> int | None:
    """The size of the largest training batch, which is the one found by ``batch_size="auto"``."""
    named = [dict(batch["dict"]) for batch in batches]
    sizes = [int(batch["train_batch_size"]) for batch in named if "train_batch_size" in batch]
    return max(sizes, default=None)


def upgrade_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a checkpoint written by `torch.save`.

    Parameters
    ----------
    path : path-like
        Read without running code.

    Returns
    -------
    plain : dict
        In the present format, to be checked.
    tensors : dict of str to Tensor

    Raises
    ------
    OSError
    ValueError, LookupError, RuntimeError, TypeError, pickle.UnpicklingError
        If it is not a checkpoint.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or saved.get("format") != FORMER:
        raise ValueError("it is no checkpoint of robust_ensembles")
    fit = {
        "about": json.loads(saved["about"]),
        "epoch": saved["epoch"],
        "seed": saved["seed"],
        "finished": False,
        "callbacks": {},
    }
    plain = {
        "format": FORMER,
        "versions": {},
        "estimator": "an estimator that former checkpoints do not describe",
        "net": None,
        "fit": fit,
    }
    if not saved["epoch"]:
        return plain, {}
    prefixes = {"module": MODULE, "auxiliary": AUXILIARY}
    net, tensors = describe_parts(
        {prefixes[n]: state for n, state in saved["modules"].items() if n in prefixes},
        saved["optimizer"],
        memory=True,
        seed=saved["seed"],
        batch_size=saved["batch_size"],
        history=json.loads(saved["history"]),
    )
    aside = TensorsAside(CALLBACKS)
    fit["callbacks"] = {
        name: {attribute: aside.encode(value) for attribute, value in state.items()}
        for name, state in saved["callbacks"].items()
    }
    fit["finished"] = saved["finished"]
    method = {METHOD + name: tensor for name, tensor in saved["method"].items()}
    return {**plain, "net": net.plain()}, {**tensors, **aside.tensors, **method}
