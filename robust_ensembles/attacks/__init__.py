"""How adversarial examples are made.

``attack(module, X, y)`` takes a torch module and tensors, ``attack.generate(estimator, X, y)``
anything fitted that ends in an estimator of this package.
"""

from ._base import Attack, BoundedAttack
from ._combined import UniformNoise, WorstCase
from ._gradient import BIM, CW, FGSM, MIM, PGD, GradientAttack
from ._objective import is_broken
from ._target import Target, resolve_target
from ._twins import as_torch, check_differentiable

__all__ = [
    "BIM",
    "CW",
    "FGSM",
    "MIM",
    "PGD",
    "Attack",
    "BoundedAttack",
    "GradientAttack",
    "Target",
    "UniformNoise",
    "WorstCase",
    "as_torch",
    "check_differentiable",
    "is_broken",
    "resolve_target",
]
