"""Base classes of attacks: `Attack`, and `BoundedAttack` for those that search an eps-ball.

`BoundedAttack` validates its input, splits it into blocks, and speeds up the module during the
attack. Subclasses implement one method, `_perturb`: the examples for one ball.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from .._checks import is_number, one_of
from .._parameters import at_least, check_parameters, choice, count, declared, flag, param
from .engine.ascent import InnerObjective, Objective, ReferenceObjective
from .engine.balls import NORMS, Ball, Box, check_box, check_radius
from .engine.fast_eval import FastEval
from .engine.forward import Minibatches, device_of, frozen
from .engine.margins import AGGREGATIONS, LOSSES
from .engine.target import check_batch, resolve_target, warn_of_units

# values of X attacked together, whatever the batch size: few large batches late in an attack, when
# most samples are broken, instead of many small ones
_BLOCK = 2**22
# samples on which a faster version of a module is tried out
_TRIAL = 4


@declared
class Attack(BaseEstimator, ABC):
    """Base class of all attacks. `BoundedAttack` adds the parameters that nearly all share."""

    targeted: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared(cls)

    @property
    def gradient_free(self) -> bool:
        """Whether the attack uses outputs only, so that nothing needs to be differentiable."""
        return False

    @abstractmethod
    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module, which is in eval mode during the attack.

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
            right for measuring robustness. False continues to the last step, which gives stronger
            examples for training and transfer.

        Returns
        -------
        X_adv : Tensor of shape (n_samples, ...)
            On the device of X.

        Raises
        ------
        TypeError, ValueError
            For parameters out of range, X outside the box, NaN, different lengths of X and y,
            labels without an output of the module, or X that the module does not accept.
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
        """Raise if a model that the attack uses has other classes than the target.

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

    def _validate(self) -> None:
        """Raise for invalid parameters."""
        check_parameters(self)


@dataclass(kw_only=True, repr=False, eq=False)
class BoundedAttack(Attack):
    """Base class of attacks that search an eps-ball: batches, validation and guarantees.

    The result of a sample does not depend on the other samples of its batch. Results are exactly
    in the eps-ball and in the box. The attacked module is left unchanged.

    Parameters
    ----------
    eps : float, default=8/255
        Radius of the ball, in the units of X. In the maximum norm, a radius larger than the width
        of the box is refused.
    norm : {"linf", "l2"}, default="linf"
        Norm of the perturbation.
    targeted : bool, default=False
        Whether `y` holds the classes to reach instead of those to leave.
    loss : str, default="margin"
        The loss to maximise: ``"margin"``, ``"cw_margin"``, ``"dlr"``, ``"cross_entropy"``,
        ``"member_cross_entropy"`` or ``"member_margin"``. ``"margin"`` is the log-odds of the
        ensemble's mean probability against the label: the same direction as ``"cross_entropy"``
        of the mean probability, but it does not round to zero for over-confident ensembles. The
        member losses are means of the members' own. ``"released_cw"`` and ``"double_softmax"``
        only reproduce published numbers.
    aggregation : {"mean_proba", "mean_logits"} or int, default="mean_proba"
        How the loss combines an ensemble's members; a number selects one member. Success is
        always judged by the deployed rule, the mean probability.
    clip_values : tuple of two floats, default=None
        Box that adversarial examples stay in; None takes the box of the estimator (or of the
        module's attribute `clip_values`), if it has one.
    batch_size : int, default=256
        Samples in one pass through the module; halved when memory runs out. Does not change the
        result.
    random_state : int or None, default=0
        Seed of random starts. The noise of a sample depends on this seed and on the sample
        alone. None draws a new seed for each call.
    """

    eps: float = param(8 / 255, at_least(0, unit=", in the units of X"))
    norm: str = param("linf", choice("linf", "l2"))
    targeted: bool = param(False, flag())
    loss: str = param("margin", choice(*LOSSES))
    aggregation: str | int = "mean_proba"
    clip_values: Box | None = None
    batch_size: int = param(256, count())
    random_state: int | None = 0

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module; see `Attack`."""
        self._validate()
        box = self._box(module)
        self.check_radius(box)
        y = check_batch(module, X, y, box)
        warn_of_units(X, self.eps, self.norm, box)
        seed = self._seed()
        device = device_of(module, X.device)
        results = []
        size = max(_BLOCK // max(X.shape[1:].numel(), 1), self.batch_size)
        with frozen(module):
            objective = self._objective(module, Minibatches(self.batch_size))
            for x, labels in zip(X.split(size), y.split(size), strict=True):
                ball = self._ball(x.detach().to(device), box)
                adversarial = self._block(
                    objective, ball, labels.to(device), seed, stop_when_broken
                )
                results.append(adversarial.to(X.device))
        return torch.cat(results) if results else X.detach().clone()

    def _block(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        """Adversarial examples made on a faster version of the module, checked on the original."""
        if not self._accelerates(stop_when_broken):
            return self._perturb(objective, ball, y, seed, stop_when_broken)
        fast = FastEval(objective.module, ball.x[:_TRIAL])
        with fast.on():
            adversarial = self._perturb(objective, ball, y, seed, stop_when_broken)
        if not fast or not stop_when_broken:
            return adversarial
        # the two modules differ by rounding: a sample broken only for the faster one is not broken
        unbroken = (~objective.broken(adversarial, y)).nonzero().squeeze(1)
        if len(unbroken):
            with fast.on():
                again = unbroken[objective.broken(adversarial[unbroken], y[unbroken])]
            if len(again):
                adversarial[again] = self._perturb(objective, ball[again], y[again], seed, True)
        return adversarial

    def _accelerates(self, stop_when_broken: bool) -> bool:
        """Whether a module that differs by rounding may be used, until decisions are checked."""
        return True

    def check_radius(self, box: Box | None) -> None:
        """Raise for a radius in the maximum norm that is larger than the box.

        Parameters
        ----------
        box : tuple of two floats or None
            Used where the attack has no `clip_values` of its own.

        Raises
        ------
        ValueError
        """
        box = box if self.clip_values is None else self.clip_values
        check_radius(self.eps, self.norm, box, type(self).__name__)

    def craft(
        self,
        module: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        box: Box | None,
        seed: int,
        objective: InnerObjective | None = None,
    ) -> Tensor:
        """Adversarial examples for one training batch: all steps, in the module's present mode.

        Parameters
        ----------
        module : nn.Module
            Its parameters must be frozen by the caller, see `frozen`.
        x : Tensor of shape (n_samples, ...)
            On the module's device.
        y : Tensor of shape (n_samples,)
        box : tuple of two floats or None
            Used where the attack has no `clip_values` of its own.
        seed : int
            Of the random start; a new one for each batch.
        objective : InnerObjective, default=None
            The objective to maximise instead of `loss`.

        Returns
        -------
        x_adv : Tensor of shape (n_samples, ...)

        Raises
        ------
        ValueError
            If an objective is given and the attack can only maximise its own.
        """
        climbed = Objective(module, self.loss, targeted=self.targeted)
        if objective is not None:
            self._check_climbs_anything()
            climbed = ReferenceObjective(climbed, objective, y)
            y = torch.arange(len(y), device=y.device)
        box = box if self.clip_values is None else self.clip_values
        return self._perturb(climbed, self._ball(x, box), y, seed, False)

    def _climbs_anything(self) -> bool:
        """Whether walks climb whatever objective `craft` is given."""
        return False

    def _check_climbs_anything(self) -> None:
        if self._climbs_anything() and not self.targeted:
            return
        raise ValueError(
            f"{self!r} cannot climb an objective that is given: it aims at classes, or climbs a "
            "loss of its own. Take an untargeted PGD, BIM, MIM, FGSM, APGD or Square"
        )

    @abstractmethod
    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        """Adversarial examples for one batch, ``ball.x``."""

    def _objective(self, module: nn.Module, minibatches: Minibatches) -> Objective:
        return Objective(
            module,
            self.loss,
            targeted=self.targeted,
            aggregation=self.aggregation,
            minibatches=minibatches,
        )

    def _ball(self, x: Tensor, box: Box | None) -> Ball:
        # samples within the tolerance of the box start inside it
        ball = NORMS[self.norm]
        return ball(x if box is None else x.clamp(*box), self.eps, box)

    def _seed(self) -> int:
        if self.random_state is None:
            return int(np.random.default_rng().integers(2**62))
        return int(self.random_state)

    def _validate(self) -> None:
        super()._validate()
        name = type(self).__name__
        if not (isinstance(self.aggregation, Integral) and self.aggregation >= 0):
            one_of(self.aggregation, AGGREGATIONS, f"{name}: aggregation")
        if self.clip_values is not None:
            check_box(self.clip_values, name)
        if self.random_state is not None and not (
            isinstance(self.random_state, Integral) and is_number(self.random_state)
        ):
            raise ValueError(
                f"{name}: random_state must be a whole number of 64 bits or None; got "
                f"{self.random_state!r}"
            )
