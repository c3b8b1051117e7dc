"""How adversarial examples are made.

``attack(module, X, y)`` takes a torch module and tensors, ``attack.generate(estimator, X, y)``
anything fitted that ends in an estimator of this package.
"""

from ._apgd import APGD, TargetedAPGD
from ._attack import Attack
from ._autoattack import AutoAttack, EnsembleAutoAttack
from ._base import BoundedAttack
from ._carlini_wagner import CarliniWagnerL2
from ._combined import UniformNoise, WorstCase
from ._deepfool import DeepFool
from ._external import External
from ._fab import FAB
from ._gradient import BIM, CW, FGSM, MIM, PGD, GradientAttack
from ._mora import MORA
from ._nearest import MinimumNormAttack
from ._objective import is_broken
from ._square import Square
from ._target import Target, resolve_target
from ._transfer import Transfer
from ._twins import as_torch, check_differentiable

__all__ = [
    "APGD",
    "BIM",
    "CW",
    "FAB",
    "FGSM",
    "MIM",
    "MORA",
    "PGD",
    "Attack",
    "AutoAttack",
    "BoundedAttack",
    "CarliniWagnerL2",
    "DeepFool",
    "EnsembleAutoAttack",
    "External",
    "GradientAttack",
    "MinimumNormAttack",
    "Square",
    "Target",
    "TargetedAPGD",
    "Transfer",
    "UniformNoise",
    "WorstCase",
    "as_torch",
    "check_differentiable",
    "is_broken",
    "resolve_target",
]
