"""Robust accuracy, and scorers for scikit-learn's searches and cross-validation."""

from ..attacks import as_torch
from ..attacks.names import attack_from_name
from .robust import robust_accuracy_score, robust_mask
from .scorers import (
    RobustScorer,
    get_robust_scorer,
    make_robust_scorer,
    make_transfer_scorer,
    robust_scoring,
)

__all__ = [
    "RobustScorer",
    "as_torch",
    "attack_from_name",
    "get_robust_scorer",
    "make_robust_scorer",
    "make_transfer_scorer",
    "robust_accuracy_score",
    "robust_mask",
    "robust_scoring",
]
