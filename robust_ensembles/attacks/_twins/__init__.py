"""Differentiable twins of fitted scikit-learn estimators, so that attacks act on raw X."""

from ._pipeline import HasMemberLogits
from ._registry import as_torch, check_differentiable

__all__ = ["HasMemberLogits", "as_torch", "check_differentiable"]
