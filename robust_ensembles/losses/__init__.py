"""Loss terms as pure functions of tensors; each cites its equation.

Throughout, `g` are input gradients of shape (n_members, n_samples, n_features), `logits` have
shape (n_members, n_samples, n_classes), `y` are class indices of shape (n_samples,).
"""

# list of losses: begin (written by `make lists`)
from .adp import adp_regularizer, non_true_log_determinant
from .ceat import Peers, disparity_weights, squared_distance, weighted_distance
from .cldl import cldl_gradient_diversity, cldl_label_diversity, soft_label_divergence
from .ensemble import (
    Formulation,
    batch_mean,
    ensemble_log_proba,
    log_mean,
    member_cross_entropy,
    without_true_class,
)
from .fasten import inter_model_divergence, intra_model_divergence
from .gal import gal_regularizer
from .geometry import CosineEpsMode, cosine, pair_cosines, safe_norm
from .gpmr import gpmr_regularizer
from .lafed import hierarchical_labels, soft_cross_entropy
from .ncen import gradient_correlations, nceen_regularizer
from .trs import trs_similarity, trs_smoothness

__all__ = [
    "CosineEpsMode",
    "Formulation",
    "Peers",
    "adp_regularizer",
    "batch_mean",
    "cldl_gradient_diversity",
    "cldl_label_diversity",
    "cosine",
    "disparity_weights",
    "ensemble_log_proba",
    "gal_regularizer",
    "gpmr_regularizer",
    "gradient_correlations",
    "hierarchical_labels",
    "inter_model_divergence",
    "intra_model_divergence",
    "log_mean",
    "member_cross_entropy",
    "nceen_regularizer",
    "non_true_log_determinant",
    "pair_cosines",
    "safe_norm",
    "soft_cross_entropy",
    "soft_label_divergence",
    "squared_distance",
    "trs_similarity",
    "trs_smoothness",
    "weighted_distance",
    "without_true_class",
]
# list of losses: end
