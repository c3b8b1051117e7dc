"""The equations: pure functions of tensors, each cites where it stands in its paper.

Throughout, `g` are input gradients of shape (n_members, n_samples, n_features), `logits` have
shape (n_members, n_samples, n_classes), `y` are class indices of shape (n_samples,).
"""

from ._ceat import Peers, disparity_weights, squared_distance, weighted_distance
from ._cldl import cldl_gradient_diversity, cldl_label_diversity, soft_label_divergence
from ._ensemble import Formulation, batch_mean, ensemble_log_proba, member_cross_entropy
from ._geometry import cosine, pair_cosines, safe_norm
from ._ncen import gradient_correlations, nceen_regularizer

__all__ = [
    "Formulation",
    "Peers",
    "batch_mean",
    "cldl_gradient_diversity",
    "cldl_label_diversity",
    "cosine",
    "disparity_weights",
    "ensemble_log_proba",
    "gradient_correlations",
    "member_cross_entropy",
    "nceen_regularizer",
    "pair_cosines",
    "safe_norm",
    "soft_label_divergence",
    "squared_distance",
    "weighted_distance",
]
