"""Differentiable twins of fitted scikit-learn estimators, so that attacks act on raw X."""

from .registry import as_torch, check_differentiable
from .steps import HasMemberLogits

__all__ = ["HasMemberLogits", "as_torch", "check_differentiable"]
