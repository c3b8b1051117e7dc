"""Differentiable twins of fitted scikit-learn estimators, so that attacks act on raw X."""

from ..attacks._twins._pipeline import HasMemberLogits
from .registry import as_torch, check_differentiable

__all__ = ["HasMemberLogits", "as_torch", "check_differentiable"]
