"""Adversarial attacks.

``attack(module, X, y)`` takes a torch module and tensors; ``attack.generate(estimator, X, y)``
takes a fitted estimator of this package, or a Pipeline or search that ends in one.
"""

from ..twins import as_torch, check_differentiable
from .base import Attack, BoundedAttack
from .engine.ascent import is_broken
from .engine.target import Target, resolve_target
from .gradient import GradientAttack
from .minimum_norm import MinimumNormAttack

__all__ = [
    "Attack",
    "BoundedAttack",
    "GradientAttack",
    "MinimumNormAttack",
    "Target",
    "as_torch",
    "check_differentiable",
    "is_broken",
    "resolve_target",
]

# list of attacks: begin (written by `make lists`)
from .apgd import APGD, TargetedAPGD
from .autoattack import AutoAttack, EnsembleAutoAttack
from .carlini_wagner import CarliniWagnerL2
from .combined import UniformNoise, WorstCase
from .deepfool import DeepFool
from .external import External
from .fab import FAB
from .gradient import BIM, CW, FGSM, MIM, PGD
from .mora import MORA
from .square import Square
from .transfer import Transfer

__all__ += [
    "APGD",
    "BIM",
    "CW",
    "FAB",
    "FGSM",
    "MIM",
    "MORA",
    "PGD",
    "AutoAttack",
    "CarliniWagnerL2",
    "DeepFool",
    "EnsembleAutoAttack",
    "External",
    "Square",
    "TargetedAPGD",
    "Transfer",
    "UniformNoise",
    "WorstCase",
]
# list of attacks: end
