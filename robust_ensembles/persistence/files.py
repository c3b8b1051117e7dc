"""`save` and `load` of fitted ensembles as safetensors files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from skorch.history import History
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from .._checks import warn
from .._system import log_once, write_whole
from ..estimators import BaseEnsembleClassifier
from ..estimators.parameters import resolve_device
from ..exceptions import ModelFileError
from ..modules import Ensemble, build_members
from ..state.container import Entry, Table, read_tensors, refused
from ..state.model_file import Header, model_bytes, read_header
from ..state.net_state import (
    ASIDE,
    AUXILIARY,
    CALLBACKS,
    METHOD,
    MODULE,
    NetState,
    describe_net,
    load_module,
    module_state,
    storable_name,
)
from ..state.optimizer import OPTIMIZER, restore_state
from ..state.values import NotStorableError
from ..training import EnsembleNet, preserve_global_rng, resolve_layers
from .header import EstimatorHeader, describe, read_estimator, set_fitted, unfitted
from .values import ENSEMBLES


def save(
    estimator: BaseEnsembleClassifier,
    path: str | os.PathLike[str],
    *,
    optimizer_state: bool = False,
) -> None:
    """Save a fitted ensemble to a file; the same as ``estimator.save``.

    Parameters
    ----------
    estimator : fitted estimator of this package
    path : path-like
        An existing file is replaced atomically.
    optimizer_state : bool, default=False
        Whether to include the optimizer's state, for further training. It makes the file two (SGD
        with momentum) or three times (Adam) as large.

    Raises
    ------
    NotFittedError
    TypeError
        If the estimator is not a class of this package, but a Pipeline or a user's subclass.
    ValueError
        If labels or weights are of a type that cannot be stored.
    FileNotFoundError
        If the folder of `path` does not exist.

    See Also
    --------
    load : Load the file; describes what is stored.
    """
    if ENSEMBLES.get(type(estimator).__name__) is not type(estimator):
        raise TypeError(
            f"save writes the ensembles of robust_ensembles, not a {type(estimator).__name__}; "
            "save the last step of a Pipeline, the best_estimator_ of a search. joblib.dump takes "
            "anything, but its files run code when they are read"
        )
    check_is_fitted(estimator)
    described = describe(estimator)
    if isinstance(described, str):
        raise ValueError(f"this estimator cannot be stored: it is {described}")
    try:
        state, tensors = describe_net(estimator.net_, memory=optimizer_state)
    except NotStorableError as error:
        advice = "; save without optimizer_state=True" if optimizer_state else ""
        raise ValueError(f"{error}{advice}") from error
    write_whole(path, model_bytes(described, state, tensors))


Components = tuple[Ensemble, nn.Module | None]


def build_own(estimator: BaseEnsembleClassifier, table: Table) -> Components:
    """Build networks of this package on torch's meta device, where tensors have no values.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With its parameters, and the attributes learned from the data.
    table : dict of str to Entry
        The table of the file. Networks with more parameters than it has are not built.

    Returns
    -------
    components : Ensemble, and nn.Module or None
    """
    with torch.device("meta"), _at_most(len(table)):
        members = _members(estimator, probe=True)
        return Ensemble(members), estimator._build_auxiliary(members, len(estimator.classes_))


def build_given(estimator: BaseEnsembleClassifier, expected: Table) -> Components:
    """Build the user's networks, if possible after a trial on the meta device.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    expected : dict of str to Entry
        The members' tensors in the file.

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


def fill(
    module: nn.Module, prefix: str, state: NetState, stored: Table, path: str | os.PathLike[str]
) -> None:
    """Load a module's tensors from a file.

    Parameters
    ----------
    module : nn.Module
        With all its tensors on the meta device, or none.
    prefix : str
        Prefix of the names of its tensors in the file.
    state : NetState
        The state in the file.
    stored : dict of str to Entry
        The file's table.
    path : path-like

    Raises
    ------
    ValueError, RuntimeError
        If they do not match the module.
    """
    own = under(stored, prefix)
    named = {storable_name(n): t for n, t in module.state_dict(keep_vars=True).items()}
    tensors = {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
    unmade = any(tensor.is_meta for tensor in tensors.values())
    if unmade:
        compare({prefix + name: tuple(tensor.shape) for name, tensor in tensors.items()}, own)
        _compare_kinds(tensors, prefix, own)
    beside = list(under(stored, ASIDE)) if state.extra else []
    found = module_state(prefix, state, read_tensors(path, [*own, *beside]))
    if not unmade:
        _take_precision(tensors, found)
    load_module(module, found, assign=unmade)


def under(table: Table, prefix: str) -> Table:
    """The entries of a table whose names begin with a prefix."""
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
    """Shapes of the user's networks, or None if they cannot be built on the meta device."""
    try:
        with preserve_global_rng(), torch.device("meta"):
            state = Ensemble(_members(estimator, probe=False)).state_dict()
        tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
        return {MODULE + storable_name(name): tuple(t.shape) for name, t in tensors.items()}
    except Exception:  # whatever a foreign constructor does with numbers that are not there
        return None


def _compare_kinds(state: Mapping[str, Tensor], prefix: str, stored: Mapping[str, Entry]) -> None:
    for name, tensor in state.items():
        dtype = stored[prefix + name].dtype
        if dtype.is_floating_point != tensor.is_floating_point():
            raise ValueError(f"{prefix + name!r} holds {dtype}, the network {tensor.dtype}")


def _take_precision(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    """Convert a module to the precision of the stored weights, which would otherwise be rounded."""
    for name, tensor in state.items():
        other = stored.get(name)
        if not isinstance(other, Tensor) or is_lazy(tensor) or tensor.dtype == other.dtype:
            continue
        if tensor.is_floating_point() and other.is_floating_point():
            tensor.data = tensor.data.to(other.dtype)


@contextmanager
def _at_most(n_parameters: int) -> Iterator[None]:
    """Raise in this thread for modules with more parameters: a header could ask for 10^9."""
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


# kinds of files: a model, and a checkpoint
_PREFIXES = (MODULE, AUXILIARY, OPTIMIZER, ASIDE, METHOD, CALLBACKS)

# parameters without which the file's weights cannot be used
_NEEDED = ("module", "module_params")


def load(path: str | os.PathLike[str], **params: Any) -> BaseEnsembleClassifier:
    """Load a fitted ensemble from a file written by ``estimator.save``, or from a checkpoint.

    Nothing in the file is run: it contains numbers and a header in JSON, which may only name
    classes of this package and of `torch.optim`. The header is compared with the length of the
    file, and the networks with its table, before memory is allocated. A file from an untrusted
    source can be wrong, but not dangerous. This does not hold for pickle, joblib and `torch.save`:
    estimators of this package can be stored by them too, but reading such a file runs its code.

    Parameters
    ----------
    path : path-like
    **params : dict
        Parameters of the estimator that replace the stored ones, as in `set_params`, such as
        ``device="cpu"``. Pass your own network class if the members are not networks of this
        package: ``module=MyNetwork``.

    Returns
    -------
    estimator : estimator of the class that was saved
        With the same version of torch, its predictions on the CPU are those of the saved estimator
        to the bit.

    Raises
    ------
    FileNotFoundError
    ModelFileError
        If the file is damaged, crafted or of another kind; it is a ValueError.
    ValueError
        If the members are the user's networks and `module` is not given, or for wrong `params`.

    Warns
    -----
    UserWarning
        For parameters that cannot be stored and are not given: they are set to their defaults.
        Predictions do not need them.

    Notes
    -----
    Stored are the class, the parameters, the weights and buffers, the label confusion model of
    CLDL, classes with their type, shape and names of the features, the box, the history (one row
    for each epoch, without its batches), the seed of the fit and versions. Objects among the
    parameters (attacks, augmentation, `calibration`, `pretrained`) are stored by class and
    parameters, as `clone` copies them: a fitted `pretrained` is loaded unfitted, and there is no
    `pretrained_`.

    Not stored are networks, callbacks and optimizers that are not from this package or torch,
    functions, splitters, RandomState instances, `External` and `Transfer` attacks, the content of
    a `FrozenEstimator`, `checkpoint_dir`, the state of callbacks, FASTEN's memory of
    perturbations, and entries of the history other than numbers, strings and containers of these.

    With ``warm_start=True``, or by `partial_fit`, training continues at the last learning rate.
    The optimizer's state is restored if the file was saved with ``optimizer_state=True``, and
    reset otherwise.

    A checkpoint of `checkpoint_dir` gives the ensemble after that epoch, with the optimizer's
    state. Its further content, from which `fit` resumes, is not read here.

    A device that does not exist on this machine is replaced by ``device="auto"``, and an
    `accelerate` that needs a missing device by ``"auto"``.

    Examples
    --------
    >>> import os, tempfile
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.persistence import load
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(max_epochs=1, random_state=0).fit(X[:500], y[:500])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "digits.safetensors")
    ...     clf.save(path)
    ...     again = load(path)
    >>> bool((again.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    # a link to the best checkpoint may change to another file in the meantime
    path = os.path.realpath(path) if os.path.islink(path) else path
    header, table = read_header(path)
    described, state = _of_a_model(header, path)
    with refused(path):
        about = read_estimator(described)
        estimator = unfitted(about)
    _ask_for_missing(path, about, params)
    estimator.set_params(**params)._validate_params()
    with refused(path):
        _fit_to_machine(estimator)
        set_fitted(estimator, about)
        rows = state.rows()
        _check_names(estimator, table, known=_PREFIXES if header.fit else _PREFIXES[:4])
        ensemble, beside = _modules(estimator, about, state, table, path, params)
        estimator.net_ = _net(estimator, state, (ensemble, beside))
        estimator.net_.history = History(rows)
        # the state is that of the saved optimizer, or of the one given instead
        if ("optimizer" in params) == ("optimizer" in about.omitted):
            kept = {"lr"} & set(params) | set(params.get("optimizer_params") or ())
            memory = read_tensors(path, [*under(table, OPTIMIZER), *under(table, ASIDE)])
            restore_state(estimator.net_.optimizer_, state.optimizer, memory, keep=kept)
    _warn_of_missing(path, about, params)
    return estimator


def _of_a_model(header: Header, path: str | os.PathLike[str]) -> tuple[dict[str, Any], NetState]:
    """The parts of a header that every model has, and a checkpoint may have."""
    if isinstance(header.estimator, str) or header.net is None:
        raise ModelFileError(
            f"{path} cannot be loaded: it is a checkpoint of {str(header.estimator)[:200]}. fit "
            "with the same data, parameters and checkpoint_dir goes on from it"
        )
    return header.estimator, header.net


def _modules(
    estimator: BaseEnsembleClassifier,
    about: EstimatorHeader,
    state: NetState,
    table: Table,
    path: str | os.PathLike[str],
    params: dict[str, Any],
) -> Components:
    """The members, and the module trained beside them, with their weights."""
    build = build_given if "module" in params else build_own
    own = under(table, MODULE) if "module" in params else table
    ensemble, beside = build(estimator, own)
    fill(ensemble, MODULE, state, table, path)
    if beside is not None:
        fill(beside, AUXILIARY, state, table, path)
    elif under(table, AUXILIARY):
        raise ValueError(f"a {about.kind} trains nothing beside its members, the file does")
    _restore_layers(estimator, about, ensemble)
    return ensemble, beside


def _net(estimator: BaseEnsembleClassifier, state: NetState, components: Components) -> EnsembleNet:
    """The net of these modules, without its history."""
    size = state.batch_size if estimator.batch_size == "auto" else None
    net = estimator._make_net(state.seed, size)
    with preserve_global_rng():
        net.build(lambda: components)
    net.module_.eval()
    return net


def _check_names(
    estimator: BaseEnsembleClassifier, table: Table, *, known: tuple[str, ...]
) -> None:
    """Raise for unknown tensors, or those of another number of members."""
    unknown = [name for name in table if not name.startswith(known)]
    if unknown:
        raise ValueError(f"its tensors {[name[:80] for name in unknown[:3]]} belong to nothing")
    found = {name.split(".")[2] for name in under(table, f"{MODULE}members.")}
    if len(found) != estimator.n_estimators:
        raise ValueError(
            f"it has weights of {len(found)} members for n_estimators={estimator.n_estimators}"
        )


def _restore_layers(
    estimator: BaseEnsembleClassifier, header: EstimatorHeader, ensemble: Any
) -> None:
    """Restore `layers_`, if the method has it."""
    looks = hasattr(estimator, "layers")
    if looks != (header.layers is not None):
        raise ValueError(f"it has {'no' if looks else 'the'} layers of a {header.kind}")
    if looks:
        if not isinstance(header.layers, list):
            raise ValueError("its layers are no list")
        with preserve_global_rng():
            estimator.layers_ = resolve_layers(
                list(ensemble), header.layers, estimator.input_shape_
            )


def _fit_to_machine(estimator: BaseEnsembleClassifier) -> None:
    """Replace settings that need a device of the machine that saved it."""
    try:
        device = resolve_device(estimator.device)
    except ValueError:
        log_once(f"device={str(estimator.device)!r} is not here: loaded with device='auto'")
        estimator.device = "auto"
        device = resolve_device("auto")
    asked = estimator.accelerate
    graphs = "cuda_graph" in ([asked] if isinstance(asked, str) else asked)
    if graphs and device.type != "cuda":
        log_once("accelerate='cuda_graph' needs CUDA: loaded with accelerate='auto'")
        estimator.accelerate = "auto"


def _ask_for_missing(
    path: str | os.PathLike[str], header: EstimatorHeader, params: dict[str, Any]
) -> None:
    """Raise for networks that are not in the file."""
    needed = {name: header.omitted[name] for name in _NEEDED if name in header.omitted}
    for name, what in needed.items():
        if name not in params:
            raise ValueError(
                f"{path} was saved with {name}={str(what)[:200]}, which a file cannot hold: give "
                f"it to load again, as load(path, {', '.join(f'{n}=...' for n in needed)})"
            )


def _warn_of_missing(
    path: str | os.PathLike[str], header: EstimatorHeader, params: dict[str, Any]
) -> None:
    """Warn of other parameters that are not in the file."""
    lost = {name: what for name, what in header.omitted.items() if name not in params}
    if lost:
        listed = ", ".join(f"{str(name)[:40]} ({str(what)[:80]})" for name, what in lost.items())
        warn(
            f"{path} could not hold {listed}: they have their defaults, which matters for further "
            "training only. Give them to load, such as callbacks=[...] or callbacks=None."
        )
