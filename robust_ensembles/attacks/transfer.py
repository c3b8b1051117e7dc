"""`Transfer`: black-box attack with adversarial examples made on surrogates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import _registry
from ..twins import as_torch
from .base import Attack, BoundedAttack
from .combined import first_success
from .engine.ascent import is_broken
from .engine.balls import Box
from .engine.forward import device_of
from .engine.target import check_batch
from .gradient import PGD


@_registry.attack(
    "transfer",
    kind="no gradients",
    summary="black box: the worst of examples made on other models",
    from_parameters=False,
)
@dataclass(repr=False, eq=False)
class Transfer(Attack):
    """Examples made on surrogates without access to the target; the worst case for each sample.

    The attacks take all their steps on a surrogate. A sample is broken if any example from any
    surrogate and any attack breaks it on the target, which need not be differentiable.

    Parameters
    ----------
    surrogate : fitted estimator, nn.Module, or sequence of these
        Trained on the same classes, on raw X of the same kind. A surrogate whose weights are all
        in the target, or the reverse, is refused: that is a white-box attack.
    attack : BoundedAttack or sequence of BoundedAttack, default=None
        For example, the same attack with several losses and seeds. None is ``PGD()``.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD, Transfer
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.metrics import robust_accuracy_score
    >>> X, y = load_digits_images()
    >>> target, surrogate = (
    ...     VanillaEnsembleClassifier(random_state=seed).fit(X[:1000], y[:1000]) for seed in (0, 1)
    ... )
    >>> black_box = Transfer(surrogate, PGD(eps=0.1))
    >>> accuracy = robust_accuracy_score(target, X[1000:], y[1000:], attack=black_box)
    """

    surrogate: Any
    attack: BoundedAttack | Sequence[BoundedAttack] | None = None

    @property
    def gradient_free(self) -> bool:
        """True: only decisions of the target are used."""
        return True

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        """Whether the attacks are targeted."""
        return any(attack.targeted for attack in self.attacks())

    def attacks(self) -> list[BoundedAttack]:
        """The attacks on each surrogate."""
        if self.attack is None:
            return [PGD()]
        return [self.attack] if isinstance(self.attack, Attack) else list(self.attack)

    def surrogates(self) -> list[nn.Module]:
        """The surrogates, as modules."""
        return [as_torch(one) for one in self._given()]

    def _given(self) -> list[Any]:
        return list(self.surrogate) if isinstance(self.surrogate, Sequence) else [self.surrogate]

    def _box(self, module: nn.Module) -> Box | None:
        return self.attacks()[0]._box(module)

    def check_classes(self, classes: NDArray[Any]) -> None:
        """Raise if a surrogate was trained on other labels than the target; see `Attack`."""
        for one in self._given():
            own = getattr(one, "classes_", None)
            if own is not None and not np.array_equal(own, classes):
                raise ValueError(
                    f"the surrogate {type(one).__name__} knows the classes "
                    f"{np.asarray(own).tolist()[:10]}, the target {classes.tolist()[:10]}: train "
                    "both on the same labels"
                )

    def examples(self, X: Tensor, y: Tensor) -> list[Tensor]:
        """One set of adversarial examples for each surrogate and attack.

        Parameters
        ----------
        X : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        sets : list of Tensor of the shape of X
        """
        self._validate()
        return [make(X, y) for make in self._makers(self.surrogates())]

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module; see `Attack`."""
        self._validate()
        if not stop_when_broken:
            raise ValueError("Transfer needs stop_when_broken=True: it looks at every decision")
        y = check_batch(module, X, y, self._box(module))
        surrogates = self.surrogates()
        for surrogate in surrogates:
            refuse_target(surrogate, module)
        left = (~is_broken(module, X, y, targeted=self.targeted)).nonzero().squeeze(1)
        return first_success(self._makers(surrogates), module, X, y, left, targeted=self.targeted)

    def _makers(self, surrogates: list[nn.Module]) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """Functions that run each attack on each surrogate."""
        return [partial(_on_surrogate, m, a) for m in surrogates for a in self.attacks()]

    def _validate(self) -> None:
        super()._validate()
        if not isinstance(self.attack, Attack | Sequence | None):
            raise TypeError(
                f"Transfer: attack must be an attack or a list of some; got {self.attack!r}"
            )
        attacks = self.attacks()
        if not attacks or (isinstance(self.surrogate, Sequence) and not self.surrogate):
            raise ValueError("Transfer needs a surrogate and an attack at least")
        for attack in attacks:
            if not isinstance(attack, BoundedAttack):
                raise TypeError(
                    f"Transfer: {attack!r} cannot be run to its last step on a surrogate; take "
                    "attacks such as PGD(eps=0.1), and several of them as a list"
                )
            attack._validate()
        if len({attack.targeted for attack in attacks}) > 1:
            raise ValueError("Transfer: attacks must be all targeted or all untargeted")


def _on_surrogate(surrogate: nn.Module, attack: BoundedAttack, X: Tensor, y: Tensor) -> Tensor:
    """Examples after all steps on a surrogate, on the device of X."""
    device = device_of(surrogate, X.device)
    made = attack(surrogate, X.to(device), y.to(device), stop_when_broken=False)
    return made.to(X.device)


def refuse_target(surrogate: nn.Module, target: nn.Module) -> None:
    """Raise if a surrogate is the target, or if all the weights of one are in the other.

    Parameters
    ----------
    surrogate, target : nn.Module

    Raises
    ------
    ValueError
    """
    mine, theirs = list(surrogate.parameters()), list(target.parameters())
    same = surrogate is target
    if mine and theirs:
        same |= _all_in(mine, theirs) or _all_in(theirs, mine)
    if same:
        raise ValueError(
            "the surrogate is the target itself, or one is part of the other: that is a "
            "white-box attack. Train the surrogate separately, with another random_state"
        )


def _all_in(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    """Whether each of some tensors equals one of the others."""
    return all(
        any(
            a is b or (a.shape == b.shape and torch.equal(a.detach().cpu(), b.detach().cpu()))
            for b in others
        )
        for a in some
    )
