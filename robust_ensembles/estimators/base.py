"""Base class of all estimators: the scikit-learn API without a training objective.

The hooks that a method may override come first, then `fit` and the methods that it calls, in
order, then predictions and files.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from .._strategy import current_strategy
from .._system import release_frames
from ..exceptions import TrainingMemoryError
from ..modules import Ensemble, RawInput, build_members
from ..training import (
    AugmentationPipeline,
    Checkpoints,
    EnsembleDataset,
    EnsembleNet,
    TrainingStep,
    locked,
    log_proba,
    member_log_proba,
    resolve_acceleration,
    seeded_global_rng,
)
from .identity import check_same_fit, describe_fit, fit_folder
from .inputs import (
    check_callbacks,
    check_classes,
    check_weights,
    check_X,
    is_dataset,
    resolve_clip_values,
    resolve_train_split,
    try_callables,
)
from .parameters import (
    EnsembleParameters,
    reserved_device,
    resolve_device,
    resolve_milestones,
    resolve_optimizer,
)

_LOGGER = logging.getLogger("robust_ensembles")

# the first batch size tried by batch_size="auto"
_LARGEST = 128


@dataclass(kw_only=True, repr=False, eq=False)
class BaseEnsembleClassifier(ClassifierMixin, EnsembleParameters, ABC):
    """Base class of all ensembles: everything but the training objective.

    The decision is the argmax of the members' mean probability. A method defines `_objective`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
        Number of values in one sample.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        If X has feature names.
    input_shape_ : tuple of int
        Shape of one sample, as passed to the members.
    clip_values_ : tuple of two floats or None
    net_ : EnsembleNet
        The skorch net.
    module_ : Ensemble
    estimators_ : list of nn.Module
        The members.
    history_ : skorch.history.History
        One row for each epoch; ``train_loss`` is the sum of the objective's terms, each of which
        has its own column.
    n_iter_ : int
        Number of trained epochs.
    device_ : torch.device
    batch_size_ : int
        Samples in a training batch; with ``batch_size="auto"``, the size that fitted into memory.
    checkpoint_dir_ : Path
        Folder of the last fit's checkpoints, if it had any.
    """

    # whether each step needs a second, independent batch of inputs
    _paired_batches: ClassVar[bool] = False
    # whether the loss contains input gradients, so that training differentiates twice
    _second_order: ClassVar[bool] = False

    @abstractmethod
    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        """The terms of the method's loss on one batch, by name."""

    def _build_auxiliary(self, members: list[nn.Module], n_classes: int) -> nn.Module | None:
        """The module that the method trains beside the members."""
        return None

    def _check_method(self, n_classes: int) -> None:
        """Raise, before anything is built, for parameters that the method cannot train with."""

    def _check_members(self, members: list[nn.Module]) -> None:
        """Raise for members that this method cannot train."""

    def _before_training(
        self, X: NDArray[Any], y: NDArray[np.int64], sample_weight: NDArray[np.float32] | None
    ) -> None:
        """Set the new members' weights, for methods that start from trained ones."""

    def _method_state(self) -> dict[str, Tensor]:
        """State of the method, besides the weights, that must be in checkpoints."""
        return {}

    def _restore_method_state(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `_method_state` returned."""

    def _check_n_estimators(self, least: int, reason: str) -> None:
        """Raise unless there are enough members."""
        if self.n_estimators < least:
            raise ValueError(
                f"n_estimators={self.n_estimators} is too few: {reason}. Use n_estimators={least} "
                "or more."
            )

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> BaseEnsembleClassifier:
        """Train the ensemble.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Floating point, or uint8, which is divided by 255. Or a `torch.utils.data.Dataset`
            with a length, for data that do not fit into memory: see the Notes.
        y : array-like of shape (n_samples,), default=None
            Class labels. May be None only for a data set with items (x, y).
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError, TypeError
            For bad input, before any training.
        NonFiniteLossError
            If a loss term becomes NaN or infinite. The weights from the start of that epoch are
            kept, and the estimator is usable.
        KeyboardInterrupt
            If interrupted; the estimator is usable, with the training so far.
        SystemExit
            At the next batch after SIGTERM, if no other handler is set; the estimator is usable,
            with the training so far.
        OSError
            If a checkpoint cannot be written; earlier ones are kept.
        TrainingMemoryError
            If memory runs out, with a batch size to try. The weights of the finished epochs are
            kept, and the estimator is usable.
        RuntimeError
            If another process is writing checkpoints to the same folder, or if a process that
            reads a data set dies; in the second case the estimator is usable, with the training so
            far.

        Notes
        -----
        A data set is read in batches by `num_workers` processes, and gives the same result, to the
        bit, as an array of its samples. Its items are (x, y), or x alone if y is given. Labels are
        taken from y, else from the attribute ``targets`` (or ``tensors``), else from a pass over
        the data. ``clip_values="auto"`` also makes a first pass over floating point data to find
        their range; uint8 data and explicit boxes need none, and a bad sample is then found when
        it is read. All samples must have the shape and dtype of the first. Random numbers a data
        set takes from torch's global generator are seeded by `random_state`; other generators are
        not. A checkpoint identifies a data set by its length, its labels and 16 samples.
        """
        warm = self.warm_start and hasattr(self, "net_")
        X, y, index = self._check_fit_input(X, y, classes=None, reset=not warm)
        weight = check_weights(self.class_weight, sample_weight, X, y)
        # cached, because it hashes X: data-parallel fits and checkpoints both need it
        describe = cache(lambda: describe_fit(self, X, index, weight))
        check_same_fit(self, describe)
        with (
            self._checkpoints(describe) as checkpoints,
            reserved_device(self.device, self.device_ if warm else None),
        ):
            if not warm:
                self._initialize(checkpoints.seed if checkpoints else None)
                if checkpoints:
                    checkpoints.begin(self.net_.seed)
                self._before_training(X, index, weight)
            return self._train_in_memory(X, index, weight, self.max_epochs, checkpoints)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> BaseEnsembleClassifier:
        """Train for one more epoch.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Or a `torch.utils.data.Dataset`, as in `fit`.
        y : array-like of shape (n_samples,), default=None
        classes : array-like of shape (n_classes,), default=None
            All classes that occur in any call; by default those of the first call.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : estimator
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all of y; with partial_fit pass a dict of weights"
            )
        if self.checkpoint_dir is not None:
            raise ValueError(
                "partial_fit keeps no checkpoints, since its data may change from call to call: "
                "set checkpoint_dir=None, or use fit"
            )
        first = not hasattr(self, "net_")
        X, y, index = self._check_fit_input(X, y, classes=classes, reset=first)
        weight = check_weights(self.class_weight, sample_weight, X, y)
        check_same_fit(self, lambda: describe_fit(self, X, index, weight))
        with reserved_device(self.device, None if first else self.device_):
            if first:
                self._initialize()
                self._before_training(X, index, weight)
            return self._train_in_memory(X, index, weight, 1)

    def _check_fit_input(
        self, X: Any, y: Any, *, classes: Any, reset: bool
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        X, y = check_X(self, X, y, reset=reset)
        index = check_classes(self, y, classes=classes, reset=reset)
        if reset:
            self.clip_values_ = resolve_clip_values(self.clip_values, X)
        else:
            resolve_clip_values(self.clip_values_, X)  # more data, in the same box
        try_callables(self, X, index)
        self._check_method(len(self.classes_))
        return X, y, index

    def _stored_description(self) -> dict[str, Any] | str:
        """The description of this estimator in checkpoints, for `load`, or why there is none."""
        from ..persistence.header import describe

        return describe(self)

    @contextmanager
    def _checkpoints(self, describe: Callable[[], dict[str, Any]]) -> Iterator[Checkpoints | None]:
        """The checkpoints of this fit, if it has a folder; raise if they are of another fit."""
        if self.checkpoint_dir is None:
            yield None
            return
        if self.warm_start:
            raise ValueError(
                "warm_start=True goes on from what is in memory, checkpoint_dir from what is on "
                "the disk: set warm_start=False or checkpoint_dir=None"
            )
        about = describe()
        self.checkpoint_dir_ = fit_folder(self.checkpoint_dir, about)
        with locked(self.checkpoint_dir_):
            yield Checkpoints(self.checkpoint_dir_, about, self)

    def _initialize(self, resumed_seed: int | None = None) -> None:
        """Build the net; draws from the random state once."""
        drawn = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        seed = current_strategy().broadcast_from_first(
            drawn if resumed_seed is None else resumed_seed
        )
        net = self._make_net(seed)
        with seeded_global_rng(seed):
            self.net_ = net.build(self._build_modules)

    def _make_net(self, seed: int, batch_size: int | None = None) -> EnsembleNet:
        """The net without its modules; by default with the batch size of the parameter."""
        asked = _LARGEST if self.batch_size == "auto" else self.batch_size
        device = resolve_device(self.device)
        optimizer, optimizer_params = resolve_optimizer(self.optimizer, self.optimizer_params)
        check_callbacks(self.callbacks)
        return EnsembleNet(
            Ensemble,
            input_shape=self.input_shape_,
            clip_values=self.clip_values_,
            seed=seed,
            augmentation=AugmentationPipeline(self.augmentation),
            lr_milestones=resolve_milestones(self.lr_milestones),
            paired=self._paired_batches,
            techniques=resolve_acceleration(
                self.accelerate, device, second_order=self._second_order
            ),
            precision=self.precision,
            optimizer=optimizer,
            lr=self.lr,
            batch_size=batch_size or asked,
            max_epochs=self.max_epochs,
            train_split=resolve_train_split(self.train_split, seed),
            callbacks=self.callbacks,
            device=str(device),
            verbose=self.verbose,
            classes=list(range(len(self.classes_))),
            **{f"optimizer__{name}": value for name, value in optimizer_params.items()},
        )

    def _build_modules(self) -> tuple[Ensemble, nn.Module | None]:
        n_classes = len(self.classes_)
        members = build_members(
            self.module,
            self.module_params,
            n_members=self.n_estimators,
            input_shape=self.input_shape_,
            n_classes=n_classes,
        )
        self._check_members(members)
        return Ensemble(members), self._build_auxiliary(members, n_classes)

    def _train_in_memory(
        self,
        X: NDArray[Any],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None,
        epochs: int,
        checkpoints: Checkpoints | None = None,
    ) -> BaseEnsembleClassifier:
        """Train; ``batch_size="auto"`` restarts with half the size whenever memory runs out.

        The result is the same as with that size from the start, so batches shrink only as long as
        no epoch is finished.
        """
        start = None
        if self.batch_size == "auto":
            start = _on_host(self.net_)
        else:  # it may have changed since the net was made
            self.net_.batch_size = self.batch_size
        while True:
            try:
                return self._train(X, y, sample_weight, epochs, checkpoints)
            except TrainingMemoryError as error:
                release_frames(error)
                smaller = error.batch_size
                if start is None or self.n_iter_ or not smaller:
                    raise
            net = self.net_
            _LOGGER.warning(
                "out of memory with batches of %d; training begins again with %d",
                net.batch_size,
                smaller,
            )
            # a new net, because schedules and other callbacks have seen the failed steps
            self.net_ = self._make_net(net.seed, smaller).build(lambda: deepcopy(start))

    def _train(
        self,
        X: NDArray[Any],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None,
        epochs: int,
        checkpoints: Checkpoints | None = None,
    ) -> BaseEnsembleClassifier:
        dataset = EnsembleDataset(X, y, sample_weight)
        self.net_.train_epochs(
            dataset, y, epochs=epochs, objective=self._objective, checkpoints=checkpoints
        )
        return self

    @property
    def module_(self) -> Ensemble:
        """The ensemble as a module."""
        return self.net_.module_

    @property
    def estimators_(self) -> list[nn.Module]:
        """The members."""
        return list(self.net_.module_)

    @property
    def history_(self) -> Any:
        """History of the training, one row for each epoch."""
        return self.net_.history

    @property
    def n_iter_(self) -> int:
        """Number of trained epochs."""
        return len(self.net_.history)

    @property
    def batch_size_(self) -> int:
        """Samples in a training batch: `batch_size`, or the size found by ``"auto"``."""
        return self.net_.batch_size

    @property
    def device_(self) -> torch.device:
        """Device of the members."""
        return torch.device(self.net_.device)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Or a `torch.utils.data.Dataset`; for all predictions.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        winners = self.predict_log_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[winners]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Mean of the members' probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
        """
        proba: NDArray[np.float64] = np.exp(self.predict_log_proba(X))
        return proba

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithm of the mean of the members' probabilities, which does not underflow.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        log_proba : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return log_proba(self.as_module(), check_X(self, X, reset=False)[0])

    def member_predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of each member.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        proba : ndarray of shape (n_estimators, n_samples, n_classes)
        """
        check_is_fitted(self)
        members = member_log_proba(self.as_module(), check_X(self, X, reset=False)[0])
        proba: NDArray[np.float64] = np.exp(members)
        return proba

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Accuracy of `predict`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Or a `torch.utils.data.Dataset`.
        y : array-like of shape (n_samples,), default=None
            True labels; None uses those of a data set.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        score : float
        """
        check_is_fitted(self)
        if y is None:
            if not is_dataset(X):
                raise TypeError("score needs y, the true labels, beside an array")
            y = check_X(self, X, None, reset=False)[1]
        score: float = accuracy_score(y, self.predict(X), sample_weight=sample_weight)
        return score

    def as_module(self) -> RawInput:
        """The fitted ensemble as a torch module in eval mode, for any attack library.

        Returns
        -------
        module : RawInput
            Maps a tensor of raw X to log mean probabilities; shares its weights with this
            estimator. ``module.member_logits(x)`` returns the logits of each member.
        """
        check_is_fitted(self)
        return self.net_.as_module()

    def save(self, path: str | os.PathLike[str], *, optimizer_state: bool = False) -> None:
        """Save this estimator to a file that can be loaded without running code from it.

        Parameters
        ----------
        path : path-like
            An existing file is replaced atomically.
        optimizer_state : bool, default=False
            Whether to include the optimizer's state, so that training continues as if it had never
            stopped. It makes the file two (SGD with momentum) or three times (Adam) as large.

        Raises
        ------
        NotFittedError
        ValueError
            If something that a prediction needs cannot be stored.

        See Also
        --------
        robust_ensembles.persistence.load : Load the file; describes what is stored.
        """
        from ..persistence import save

        save(self, path, optimizer_state=optimizer_state)

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        input_dtype: str = "float32",
        tolerance: float = 1e-5,
    ) -> None:
        """Write the deployed rule as an ONNX model, for serving.

        Parameters
        ----------
        path : path-like
        input_dtype : {"float32", "float64", "uint8"}, default="float32"
            The dtype of X in the ONNX model.
        tolerance : float, default=1e-5
            Largest allowed difference between onnxruntime and this estimator.

        See Also
        --------
        robust_ensembles.persistence.export_onnx : The same as a function, with all details.
        """
        from ..persistence import export_onnx

        export_onnx(self, path, input_dtype=input_dtype, tolerance=tolerance)


def _on_host(net: EnsembleNet) -> tuple[Ensemble, nn.Module | None] | None:
    """A copy of a net's modules on the CPU, before training."""
    if len(net.history):
        return None
    modules: tuple[Ensemble, nn.Module | None] = deepcopy(
        (net.module_, net.auxiliary_ if net.has_auxiliary_ else None)
    )
    for module in modules:
        if module is not None:
            module.cpu()
    return modules
