"""Starting from members that are trained already."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval
from torch import nn

from ..modules import build_members
from ..training import derive_seed
from .base import BaseEnsembleClassifier
from .parameters import EnsembleParameters
from .vanilla import VanillaEnsembleClassifier


@dataclass(kw_only=True, repr=False, eq=False)
class PretrainedMixin(BaseEnsembleClassifier):
    """Parameter of the methods that start from a trained ensemble.

    Parameters
    ----------
    pretrained : estimator, int or None, default=None
        What the members start from: None for fresh weights; a number of epochs, for which a
        `VanillaEnsembleClassifier` with the same settings (but no `lr_milestones`, `callbacks`)
        is trained first; an ensemble of this package, with members of the same architecture. A
        fitted one gives its weights, an unfitted one is cloned and trained on the same data
        first. Searches and `clone` make everything unfitted: to keep a fitted ensemble there,
        wrap it in `sklearn.frozen.FrozenEstimator`.

    Attributes
    ----------
    pretrained_ : estimator or None
        The fitted ensemble that the members started from.
    """

    pretrained: Any = None

    _pretrained_constraints: ClassVar[dict[str, Any]] = {
        "pretrained": [
            Interval(Integral, 1, None, closed="left"),
            BaseEnsembleClassifier,
            FrozenEstimator,
            None,
        ],
    }

    def _check_members(self, members: list[nn.Module]) -> None:
        super()._check_members(members)
        source = self._pretrained_source()
        if source is None:
            return
        if hasattr(source, "net_"):
            if not np.array_equal(source.classes_, self.classes_):
                raise ValueError(
                    f"pretrained knows the classes {list(source.classes_)}, y holds "
                    f"{list(self.classes_)}; train it on the same classes"
                )
            theirs = source.estimators_
        else:
            theirs = _members_of(source, self.input_shape_, len(self.classes_))
        _check_same_architecture(members, theirs)

    def _before_training(
        self, X: NDArray[Any], y: NDArray[np.int64], sample_weight: NDArray[np.float32] | None
    ) -> None:
        source = self._pretrained_source()
        trained = source is None or hasattr(source, "net_")
        self.pretrained_ = source if trained else clone(source)
        try:
            if not trained:
                self._fit_pretrained(X, self.classes_[y], sample_weight)
        finally:  # what an interrupted training has learned is used too
            self._copy_pretrained()

    def _fit_pretrained(
        self, X: NDArray[Any], y: NDArray[Any], sample_weight: NDArray[np.float32] | None
    ) -> None:
        if self.pretrained_.random_state is None:
            seed = derive_seed(self.net_.seed, "pretrained") % np.iinfo(np.int32).max
            self.pretrained_.set_params(random_state=seed)
        theirs = self.pretrained_.checkpoint_dir
        if self.checkpoint_dir is not None and theirs in (None, self.checkpoint_dir):
            self.pretrained_.set_params(checkpoint_dir=self.checkpoint_dir_ / "pretrained")
        self.pretrained_.fit(X, y, sample_weight=sample_weight)

    def _copy_pretrained(self) -> None:
        if hasattr(self.pretrained_, "net_"):
            for member, trained in zip(self.module_, self.pretrained_.module_, strict=True):
                member.load_state_dict(trained.state_dict())

    def _pretrained_source(self) -> Any:
        """The ensemble that is meant, fitted or not, or None."""
        if isinstance(self.pretrained, FrozenEstimator):
            if not isinstance(self.pretrained.estimator, BaseEnsembleClassifier):
                raise TypeError(
                    "pretrained must be an ensemble of this package; got "
                    f"{self.pretrained.estimator!r}"
                )
            return self.pretrained.estimator
        if not isinstance(self.pretrained, Integral):
            return self.pretrained
        shared = {f.name: getattr(self, f.name) for f in fields(EnsembleParameters)}
        first = {"max_epochs": int(self.pretrained), "lr_milestones": None, "callbacks": None}
        # weights are applied already, and the members are not trained before
        rest = {"class_weight": None, "warm_start": False, "random_state": None}
        return VanillaEnsembleClassifier(**{**shared, **first, **rest})


def _members_of(
    estimator: BaseEnsembleClassifier, input_shape: tuple[int, ...], n_classes: int
) -> list[nn.Module]:
    """The members that an unfitted ensemble would train."""
    with torch.random.fork_rng(devices=[]):  # these weights are not used
        return build_members(
            estimator.module,
            estimator.module_params,
            n_members=estimator.n_estimators,
            input_shape=input_shape,
            n_classes=n_classes,
        )


def _check_same_architecture(ours: Iterable[nn.Module], theirs: Iterable[nn.Module]) -> None:
    """Raise unless weights can go from one list of members to the other."""
    pairs = itertools.zip_longest(ours, theirs)
    for index, (own, other) in enumerate(pairs):
        if own is None or other is None or type(own) is not type(other):
            names = [type(m).__name__ if m is not None else "nothing" for m in (own, other)]
            raise ValueError(
                f"pretrained: member {index} is {names[0]} here and {names[1]} there; give both "
                "the same n_estimators, module and module_params"
            )
        shapes, others = _shapes(own), _shapes(other)
        for name in {**shapes, **others}:
            if shapes.get(name) != others.get(name):
                raise ValueError(
                    f"pretrained: {name} of member {index} has shape {shapes.get(name)} here and "
                    f"{others.get(name)} there; give both the same module and module_params"
                )


def _shapes(member: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in member.state_dict().items()}
