"""The members of a file: built without memory, compared with the file's table, then filled."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from ..estimators import BaseEnsembleClassifier
from ..modules import Ensemble, build_members
from ..state.container import Entry, Table, read_tensors
from ..training import preserve_global_rng

Components = tuple[Ensemble, nn.Module | None]


def build_own(estimator: BaseEnsembleClassifier, table: Table) -> Components:
    """Build networks of this package on torch's meta device, where tensors have no numbers.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With its parameters and what it knows of the data.
    table : dict of str to Entry
        Of the file: nothing with more parameters than this has tensors is built.

    Returns
    -------
    components : Ensemble, and nn.Module or None
    """
    with torch.device("meta"), _at_most(len(table)):
        members = _members(estimator, probe=True)
        return Ensemble(members), estimator._build_auxiliary(members, len(estimator.classes_))


def build_given(estimator: BaseEnsembleClassifier, expected: Table) -> Components:
    """Build networks of the user's, after a trial without memory where they allow it.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    expected : dict of str to Entry
        What the file has of the members.

    Returns
    -------
    components : Ensemble, and nn.Module or None

    Raises
    ------
    ValueError
        If they have other weights than the file.
    """
    given = estimator.module
    parts = given if isinstance(given, (list, tuple)) else [given]
    if not any(isinstance(part, nn.Module) for part in parts):
        tried = _tried(estimator)
        if tried is not None:
            compare(tried, expected)
    with preserve_global_rng():
        members = _members(estimator, probe=False)
    with torch.device("meta"):
        auxiliary = estimator._build_auxiliary(members, len(estimator.classes_))
    return Ensemble(members), auxiliary


def compare(shapes: Mapping[str, tuple[int, ...]], stored: Table) -> None:
    """Raise unless a file has exactly these tensors.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
    stored : dict of str to Entry

    Raises
    ------
    ValueError
    """
    missing, unknown = sorted(set(shapes) - set(stored)), sorted(set(stored) - set(shapes))
    if missing or unknown:
        raise ValueError(
            f"its tensors are not those of its networks: {missing[:3]} are missing, "
            f"{[name[:80] for name in unknown[:3]]} have no place"
        )
    for name, shape in shapes.items():
        if shape != stored[name].shape:
            raise ValueError(f"{name!r} has shape {stored[name].shape}, the network's has {shape}")


def fill(module: nn.Module, prefix: str, stored: Table, path: str | os.PathLike[str]) -> None:
    """Read a module's tensors.

    Parameters
    ----------
    module : nn.Module
        With all its tensors on the meta device, or with none.
    prefix : str
        What the names of its tensors begin with in the file.
    stored : dict of str to Entry
        These tensors, by their full names.
    path : path-like

    Raises
    ------
    ValueError, RuntimeError
        If they are not the module's.
    """
    state = module.state_dict(keep_vars=True)
    unmade = any(tensor.is_meta for tensor in state.values())
    if unmade:
        compare({prefix + name: tuple(tensor.shape) for name, tensor in state.items()}, stored)
        _compare_kinds(state, prefix, stored)
    tensors = read_tensors(path, list(stored))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not unmade:
        _take_precision(state, tensors)
    module.load_state_dict(tensors, assign=unmade)


def under(table: Table, prefix: str) -> Table:
    """The part of a table whose names begin like this."""
    return {name: entry for name, entry in table.items() if name.startswith(prefix)}


def _members(estimator: BaseEnsembleClassifier, *, probe: bool) -> list[nn.Module]:
    return build_members(
        estimator.module,
        estimator.module_params,
        n_members=estimator.n_estimators,
        input_shape=estimator.input_shape_,
        n_classes=len(estimator.classes_),
        probe=probe,
    )


def _tried(estimator: BaseEnsembleClassifier) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the user's networks, or None where they cannot be built without numbers."""
    try:
        with preserve_global_rng(), torch.device("meta"):
            state = Ensemble(_members(estimator, probe=False)).state_dict()
        return {f"module.{name}": tuple(tensor.shape) for name, tensor in state.items()}
    except Exception:  # whatever a foreign constructor does with numbers that are not there
        return None


def _compare_kinds(state: Mapping[str, Tensor], prefix: str, stored: Mapping[str, Entry]) -> None:
    for name, tensor in state.items():
        dtype = stored[prefix + name].dtype
        if dtype.is_floating_point != tensor.is_floating_point():
            raise ValueError(f"{prefix + name!r} holds {dtype}, the network {tensor.dtype}")


def _take_precision(state: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Give a module's weights the precision of stored ones, which would be rounded otherwise."""
    for name, tensor in state.items():
        other = stored.get(name)
        if other is None or is_lazy(tensor) or tensor.dtype == other.dtype:
            continue
        if tensor.is_floating_point() and other.is_floating_point():
            tensor.data = tensor.data.to(other.dtype)


@contextmanager
def _at_most(n_parameters: int) -> Iterator[None]:
    """Stop this thread from making modules with more parameters: a header can ask for 10^9."""
    thread, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None and threading.get_ident() == thread
        if made > n_parameters:
            raise ValueError(
                f"its parameters describe larger networks than its {n_parameters} tensors fill"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
