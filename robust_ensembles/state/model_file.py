"""The file of a fitted ensemble, a saved model or a checkpoint: its header and its tensors.

The header is JSON: the estimator as described by `robust_ensembles.persistence`, the net as
described by `net_state`, and in a checkpoint the fit that it belongs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from .._system import versions
from ..exceptions import ModelFileError
from .container import Table, parse_json, read_tensors, read_text, refused, to_bytes
from .former import FORMER, FORMER_SUFFIX, upgrade_checkpoint, upgrade_header
from .net_state import NetState, check_seed, read_net_state

FORMAT = 2
"""Version of the format; increased when older versions of this package cannot read new files."""

KEY = "robust_ensembles"
"""Key of the header in the file's metadata."""


class OtherFormatError(ModelFileError):
    """The file has another version of the format."""


@dataclass(frozen=True)
class FitState:
    """State of a fit in a checkpoint, besides the net.

    Parameters
    ----------
    about : dict
        Data and parameters, for comparison.
    epoch : int
        Number of finished epochs.
    seed : int
    finished : bool
        Whether all epochs are trained, or training was stopped early on purpose.
    callbacks : dict
        State of each callback, encoded.
    """

    about: dict[str, Any]
    epoch: int
    seed: int
    finished: bool
    callbacks: dict[str, Any]


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Parameters
    ----------
    estimator : dict or str
        Its description, or why there is none.
    net : NetState or None
        None before the first epoch.
    fit : FitState or None
        None for a saved model.
    versions : dict of str to str
        Versions of the package and its dependencies that wrote the file, for information only.
    """

    estimator: dict[str, Any] | str
    net: NetState | None
    fit: FitState | None
    versions: dict[str, str]


def model_bytes(
    estimator: dict[str, Any] | str,
    net: NetState | None,
    tensors: Mapping[str, Tensor],
    fit: FitState | None = None,
) -> bytes:
    """The content of a file.

    Parameters
    ----------
    estimator, net, fit
        Parts of the header.
    tensors : mapping of str to Tensor

    Returns
    -------
    content : bytes

    Raises
    ------
    ValueError
        If a tensor cannot be stored.
    """
    header = {
        "format": FORMAT,
        "versions": versions(),
        "estimator": estimator,
        "net": None if net is None else net.plain(),
        "fit": None if fit is None else asdict(fit),
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":"))
    return to_bytes(tensors, text, KEY)


def read_header(path: str | os.PathLike[str]) -> tuple[Header, Table]:
    """Read the header and the table of a file, without any tensor.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    header : Header
    table : dict of str to Entry

    Raises
    ------
    FileNotFoundError
    ModelFileError
        If the file is damaged, crafted or of another kind. An OtherFormatError if another version
        of this package can read it.
    """
    text, table = read_text(path, KEY)
    with refused(path):
        plain = parse_json(text, "header")
        _check_format(plain, path)
        if plain["format"] == FORMER:
            plain = upgrade_header(plain)
        return _checked(plain), table


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """Read the header and all tensors of a checkpoint.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    header : Header
        With a fit.
    tensors : dict of str to Tensor

    Raises
    ------
    OSError
    ModelFileError
        As in `read_header`, or if it is not a checkpoint.
    """
    with refused(path) as refuse:
        if os.fspath(path).endswith(FORMER_SUFFIX):
            plain, tensors = upgrade_checkpoint(path)
            header = _checked(plain)
        else:
            header, table = read_header(path)
            tensors = read_tensors(path, list(table))
        if header.fit is None or (header.net is None) != (header.fit.epoch == 0):
            refuse("it is a model, or a part of a checkpoint")
        if header.net is not None and len(header.net.history) != header.fit.epoch:
            rows, epochs = len(header.net.history), header.fit.epoch
            refuse(f"it has {rows} rows of history for {epochs} epochs")
    return header, tensors


def _check_format(plain: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(plain, dict) or type(plain.get("format")) is not int:
        raise ValueError("its header has no format version")
    if plain["format"] not in (FORMER, FORMAT):
        raise OtherFormatError(
            f"{path} cannot be loaded: it has format version {plain['format']}, this version of "
            f"robust_ensembles reads {FORMER} and {FORMAT}; it was written with robust_ensembles "
            f"{str(plain.get('versions', {}))[:200]}: install that"
        )


def _checked(plain: dict[str, Any]) -> Header:
    """Make a header from JSON, if it is complete."""
    names = {"format", *(field.name for field in fields(Header))}
    if set(plain) != names:
        raise ValueError(f"its header has other fields than {sorted(names)}")
    if not isinstance(plain["estimator"], (dict, str)):
        raise ValueError("estimator in its header is no dict")
    net = None if plain["net"] is None else read_net_state(plain["net"])
    fit = None if plain["fit"] is None else _read_fit(plain["fit"])
    return Header(plain["estimator"], net, fit, plain["versions"])


def _read_fit(plain: Any) -> FitState:
    kinds = {"about": dict, "epoch": int, "seed": int, "finished": bool, "callbacks": dict}
    if not isinstance(plain, dict) or set(plain) != set(kinds):
        raise ValueError(f"fit in its header has other fields than {sorted(kinds)}")
    for name, kind in kinds.items():
        if type(plain[name]) is not kind:
            raise ValueError(f"{name} in its header is no {kind.__name__}")
    check_seed(plain["seed"])
    return FitState(**plain)
