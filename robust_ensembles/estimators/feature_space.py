"""Base class of DVERGE, LAFED and FASTEN, which perturb images in a member's feature space."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from .._parameters import above, at_least, choice, count, param
from ..attacks.engine.ascent import StepRule
from ..modules import build_members
from ..training import TrainingStep, derive_seed, distill, resolve_layers
from .adversarial_training import AdversarialTraining
from .base import BaseEnsembleClassifier
from .parameters import EnsembleParameters
from .vanilla import VanillaEnsembleClassifier


@dataclass(kw_only=True, repr=False, eq=False)
class FeatureSpaceMethod(AdversarialTraining):
    """Base class of methods that train members on images perturbed in each other's feature space.

    Parameters
    ----------
    pretrained : estimator, int or None, default=None
        Source of the members' initial weights: None for random weights; a number of epochs, for
        which a `VanillaEnsembleClassifier` with the same settings (but without `lr_milestones` and
        `callbacks`) is trained first, as in the original methods; or an ensemble of this package
        with members of the same architecture. The weights of a fitted one are copied, an unfitted
        one is cloned and trained on the same data first. Searches and `clone` reset fitted
        ensembles: to keep one, wrap it in `sklearn.frozen.FrozenEstimator`.
    eps : float, default=0.07
        Radius of the perturbation (maximum norm), in the units of X.
    step_size : float, default=0.007
        Length of a step, in the units of X.
    n_steps : int, default=10
        Number of steps, with momentum 1 on gradients of unit L1 norm.
    layers : list of str, list of lists, or None, default=None
        Names of the layers whose outputs are features, as in `named_modules`; one list for all
        members or one for each. None uses the outputs of convolutions, blocks and linear layers
        before their activation, including the logits.
    layer_schedule : {"epoch", "step"}, default="epoch"
        How often one of the layers is drawn. Members share the draw; if they have different
        numbers of layers, the relative depth is drawn.
    craft_bn : {"train_frozen_stats", "train", "eval"}, default=None
        BatchNorm while images are crafted or perturbed: batch statistics, with the running
        statistics restored afterwards; batch statistics, with the running statistics updated by
        the iterates as in released code; or running statistics. None is the first, or the second
        for ``formulation="released"``.

    Attributes
    ----------
    pretrained_ : estimator or None
        The fitted ensemble that the members started from.
    layers_ : list of n_estimators lists of str
        The layers of each member.
    """

    pretrained: Any = param(None, count(), BaseEnsembleClassifier, FrozenEstimator, None)
    eps: float = param(0.07, at_least(0))
    step_size: float = param(0.007, above(0))
    n_steps: int = param(10, count())
    layers: Sequence[str] | Sequence[Sequence[str]] | None = param(None, list, tuple, None)
    layer_schedule: Literal["epoch", "step"] = param("epoch", choice("epoch", "step"))
    attack_target: Literal["ensemble", "member"] = "member"

    def _layer_names(self, step: TrainingStep) -> list[str]:
        """The layer of each member in this step."""
        seed = step.epoch_seed if self.layer_schedule == "epoch" else step.seed
        depth = np.random.default_rng(derive_seed(seed, "layer")).random()
        return [names[int(depth * len(names))] for names in self.layers_]

    def _distill(self, step: TrainingStep) -> list[Tensor]:
        """For each member, images that look like the batch but have its features of others."""
        assert step.batch.x_target is not None
        walk = StepRule(self.n_steps, self.step_size, decay=1.0)
        layers = self._layer_names(step)
        with step.frozen(self._craft_mode):
            return [
                distill(step, member, layer, x_target=step.batch.x_target, eps=self.eps, walk=walk)
                for member, layer in zip(step.module, layers, strict=True)
            ]

    def _check_members(self, members: list[nn.Module]) -> None:
        super()._check_members(members)
        self._check_pretrained(members)
        self.layers_ = resolve_layers(members, self.layers, self.input_shape_)

    def _check_pretrained(self, members: list[nn.Module]) -> None:
        """Raise for pretrained weights that do not fit the members."""
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
        """The source ensemble, fitted or not, or None."""
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
        # class weights are already in the sample weights, and the members are new
        rest = {"class_weight": None, "warm_start": False, "random_state": None}
        return VanillaEnsembleClassifier(**{**shared, **first, **rest})


def _members_of(
    estimator: BaseEnsembleClassifier, input_shape: tuple[int, ...], n_classes: int
) -> list[nn.Module]:
    """New members of an unfitted ensemble."""
    with torch.random.fork_rng(devices=[]):  # these weights are not used
        return build_members(
            estimator.module,
            estimator.module_params,
            n_members=estimator.n_estimators,
            input_shape=input_shape,
            n_classes=n_classes,
        )


def _check_same_architecture(ours: Iterable[nn.Module], theirs: Iterable[nn.Module]) -> None:
    """Raise unless weights can be copied from one list of members to the other."""
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
