"""The safetensors container: tensors described by a table, which is checked before it is used.

A file consists of eight bytes with the table's length, the table as JSON, and the values of all
tensors one after the other. safetensors checks that the table is consistent with itself and the
file, without reading values; the length of the table, its names and dtypes are checked here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..exceptions import ModelFileError

MAX_TABLE = 32 * 2**20
"""Largest table in bytes; that of ten ResNets after 200 epochs has a quarter of a million."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
}
"""Dtypes by their names in safetensors."""

_MAX_NAME = 1024
_MAX_REASON = 800
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\\]|\.\.")


@dataclass(frozen=True)
class Entry:
    """Dtype and shape of one tensor in the table."""

    dtype: torch.dtype
    shape: tuple[int, ...]


Table = dict[str, Entry]


@contextmanager
def refused(path: str | os.PathLike[str]) -> Iterator[Callable[[str], NoReturn]]:
    """Give a function that refuses a file; other errors about its content are converted.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    refuse : callable
        Raises a ModelFileError.
    """

    def refuse(reason: str) -> NoReturn:
        raise ModelFileError(f"{path} cannot be loaded: {reason}")

    try:
        yield refuse
    except ModelFileError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        # some messages of torch are pages long
        raise ModelFileError(f"{path} cannot be loaded: {str(error)[:_MAX_REASON]}") from error


def to_bytes(tensors: Mapping[str, Tensor], text: str, key: str) -> bytes:
    """The content of a file with tensors and a text.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        On any device.
    text : str
        Stored in the metadata.
    key : str
        Name of the text in the metadata.

    Returns
    -------
    content : bytes

    Raises
    ------
    ValueError
        If a tensor has a dtype or name that would not be read again, or if the table is too long.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in names or tensor.layout != torch.strided or _is_bad_name(name):
            raise ValueError(
                f"{name!r} ({tensor.dtype}, {tensor.layout}) cannot be stored: names have no "
                f"slashes or double dots, and dense tensors are of {sorted(DTYPES)}"
            )
    content = save(_apart(tensors), metadata={key: text})
    length = int.from_bytes(content[:8], "little")
    if length > MAX_TABLE:
        raise ValueError(
            f"the header would have {length} bytes, and no more than {MAX_TABLE} are read: "
            "callbacks must not record long values in the history"
        )
    return content


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, without shared memory, which safetensors refuses."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        place = dense.untyped_storage().data_ptr()
        apart[name] = dense.clone() if place in seen else dense
        seen.add(place)
    return apart


def read_tensors(path: str | os.PathLike[str], names: list[str]) -> dict[str, Tensor]:
    """Read some tensors of a file with a checked table, on the CPU.

    Parameters
    ----------
    path : path-like
    names : list of str

    Returns
    -------
    tensors : dict of str to Tensor
        Copies, because the file may change or be removed later.
    """
    with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in names}


def read_text(path: str | os.PathLike[str], key: str) -> tuple[str, Table]:
    """Read the text and the table of a file, without any tensor.

    Parameters
    ----------
    path : path-like
    key : str
        Name of the text in the metadata.

    Returns
    -------
    text : str
    table : dict of str to Entry

    Raises
    ------
    FileNotFoundError
    ModelFileError
        If the file is not a safetensors file, is damaged, claims more than it has, or has no such
        text.
    """
    metadata, table = _read_table(path)
    text = metadata.get(key)
    if not isinstance(text, str):
        raise ModelFileError(
            f"{path} cannot be loaded: it is a safetensors file, but no ensemble of "
            "robust_ensembles; those come from clf.save(path)"
        )
    return text, table


def parse_json(text: str | bytes, what: str) -> Any:
    """Parse strict JSON, without repeated keys or NaN.

    Parameters
    ----------
    text : str or bytes
    what : str
        Name of the text, for the message.

    Returns
    -------
    value : object

    Raises
    ------
    ValueError
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in it")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {what} is not read as JSON: {error}") from error


def _read_table(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Table]:
    """Metadata and entries."""
    with open(path, "rb") as file, refused(path) as refuse:
        found = parse_json(_table_bytes(file, refuse), "table")
        if not isinstance(found, dict):
            refuse("its table is no JSON object")
        metadata = found.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            refuse("its metadata are no JSON object")
        for name, claimed in found.items():
            _check_claim(name, claimed, refuse)
        # checks shapes and offsets against each other and the length of the file
        with safe_open(os.fspath(path), framework="pt", device="cpu"):
            pass
    table = {n: Entry(DTYPES[claim["dtype"]], tuple(claim["shape"])) for n, claim in found.items()}
    return metadata, table


def _table_bytes(file: BinaryIO, refuse: Callable[[str], NoReturn]) -> bytes:
    """Read the table, if its length is allowed."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        refuse(
            "it is no safetensors file, or a part of one. Files of pickle and joblib are read by "
            "those, and run code: read them only if you trust whoever wrote them"
        )
    if length > MAX_TABLE:
        refuse(f"its table has {length} bytes, more than the {MAX_TABLE} that are read")
    return file.read(length)


def _check_claim(name: str, claimed: Any, refuse: Callable[[str], NoReturn]) -> None:
    """Refuse what safetensors would accept: unusual names and fields, and unknown dtypes."""
    if _is_bad_name(name):
        refuse(f"it has a tensor with the name {name[:80]!r}")
    if not isinstance(claimed, dict) or set(claimed) != {"dtype", "shape", "data_offsets"}:
        refuse(f"its table says something else of {name!r} than dtype, shape and data_offsets")
    if not isinstance(claimed["dtype"], str) or claimed["dtype"] not in DTYPES:
        refuse(f"{name!r} is of the type {str(claimed['dtype'])[:80]!r}; known: {list(DTYPES)}")


def _is_bad_name(name: str) -> bool:
    """Whether a tensor's name could be a path."""
    return not 0 < len(name) <= _MAX_NAME or _FORBIDDEN.search(name) is not None
