"""What every attack can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from .engine.balls import Box
from .engine.target import resolve_target


class Attack(BaseEstimator, ABC):
    """What every attack can do. `BoundedAttack` adds the parameters that nearly all share."""

    targeted: bool = False

    @property
    def gradient_free(self) -> bool:
        """Whether the attack looks at decisions only, so that nothing need be differentiable."""
        return False

    @abstractmethod
    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module, which is put into eval mode meanwhile.

        Parameters
        ----------
        module : nn.Module
            Returns logits or log-probabilities, (n, n_classes), or has
            ``member_logits(x) -> (n_members, n, n_classes)``.
        X : Tensor of shape (n_samples, ...)
            float32 or float64.
        y : Tensor of shape (n_samples,)
            Class indices: the true ones, or the targets of a targeted attack.
        stop_when_broken : bool, default=True
            Whether a sample leaves the attack once it is misclassified (or reaches its target):
            right for measuring robustness. False goes on to the last step: stronger examples
            for training and for transfer.

        Returns
        -------
        X_adv : Tensor of shape (n_samples, ...)
            On the device of X.

        Raises
        ------
        TypeError, ValueError
            For parameters out of range, X outside the box, NaN, lengths that differ, labels that
            the module has no output for, or X that it does not take.
        FloatingPointError
            If the module's gradients are NaN or infinite.
        """

    def generate(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> NDArray[Any]:
        """Adversarial examples for a fitted estimator, through the steps of a Pipeline.

        Parameters
        ----------
        estimator : fitted estimator
            One of this package, or a Pipeline or search that ends in one; any classifier with a
            `predict_proba`, if the attack needs no gradient.
        X : array-like of shape (n_samples, ...)
            Raw X, as the estimator takes it. uint8 images are attacked in [0, 1].
        y : array-like of shape (n_samples,)
            Labels as in `estimator.classes_`.

        Returns
        -------
        X_adv : ndarray of the shape of X
            Floating point.

        Raises
        ------
        NotDifferentiableError
            If a step of the estimator has no differentiable twin.
        """
        self._validate()
        target = resolve_target(estimator, X, gradient=not self.gradient_free)
        self.check_classes(target.classes)
        adversarial = self(target.module, target.tensor(X), target.encode(y))
        result: NDArray[Any] = adversarial.cpu().numpy().reshape(np.shape(X))
        return result

    def check_classes(self, classes: NDArray[Any]) -> None:
        """Raise if the attack knows other classes than the target has.

        Parameters
        ----------
        classes : ndarray of shape (n_classes,)
            Labels, in the order of the target's outputs.

        Raises
        ------
        ValueError
            If another model that the attack uses was trained on other labels.
        """

    def _box(self, module: nn.Module) -> Box | None:
        """The box that X must lie in."""
        own: Box | None = getattr(self, "clip_values", None)
        return getattr(module, "clip_values", None) if own is None else own

    @abstractmethod
    def _validate(self) -> None:
        """Raise for parameters that make no sense."""
