"""Weights mean repetition, up to the documented division by the number of samples."""

import pytest
import torch

from robust_ensembles.losses import (
    adp_regularizer,
    batch_mean,
    cldl_gradient_diversity,
    cldl_label_diversity,
    gal_regularizer,
    gpmr_regularizer,
    inter_model_divergence,
    intra_model_divergence,
    member_cross_entropy,
    nceen_regularizer,
    trs_similarity,
    trs_smoothness,
    weighted_distance,
)

N_MEMBERS, N_SAMPLES = 3, 4


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LOGITS, G, Y = random(3, 4, 5), random(3, 4, 6, seed=1), torch.tensor([0, 4, 2, 2])


def label_diversity(rows, weight, formulation):
    s = LOGITS[:, rows].softmax(dim=-1)
    return cldl_label_diversity(s, Y[rows], formulation=formulation, sample_weight=weight)


def gpmr_magnitude(rows, weight):
    """Its gradients and its scale carry 1 / n_samples by definition, taken out here."""
    n = len(rows)
    return gpmr_regularizer(G[:, rows] / n, lambda_div=0.0, lambda_eq=n, sample_weight=weight)


LOG_Q = LOGITS.log_softmax(dim=-1)
LOSSES = {
    "batch_mean": lambda rows, w: batch_mean(G[0, rows, 0], w),
    "cross_entropy": lambda rows, w: member_cross_entropy(LOGITS[:, rows], Y[rows], w),
    "label-paper": lambda rows, w: label_diversity(rows, w, "paper"),
    "label-released": lambda rows, w: label_diversity(rows, w, "released"),
    "gradient-paper": lambda rows, w: cldl_gradient_diversity(G[:, rows], sample_weight=w),
    "gradient-released": lambda rows, w: cldl_gradient_diversity(
        G[:, rows], formulation="released", sample_weight=w
    ),
    "ncen-paper": lambda rows, w: nceen_regularizer(
        G[:, rows], lambda_cos=1.0, lambda_norm=1.0, sample_weight=w
    ),
    "ncen-released": lambda rows, w: nceen_regularizer(
        G[:, rows], lambda_cos=1.0, lambda_norm=1.0, formulation="released", sample_weight=w
    ),
    "adp": lambda rows, w: adp_regularizer(
        LOG_Q[:, rows].exp(), Y[rows], alpha=2.0, beta=0.5, sample_weight=w
    ),
    "gal": lambda rows, w: gal_regularizer(G[:, rows], sample_weight=w),
    "gpmr-direction": lambda rows, w: gpmr_regularizer(
        G[:, rows], lambda_div=1.0, lambda_eq=0.0, sample_weight=w
    ),
    "gpmr-magnitude": gpmr_magnitude,
    "trs-similarity": lambda rows, w: trs_similarity(G[:, rows], sample_weight=w),
    "trs-smoothness": lambda rows, w: trs_smoothness(G[:, rows], sample_weight=w),
    "fasten-intra": lambda rows, w: intra_model_divergence(LOG_Q[:, rows], w),
    "fasten-inter": lambda rows, w: inter_model_divergence(LOG_Q[:2, rows], LOG_Q[2, rows], w),
    "fasten-capped": lambda rows, w: inter_model_divergence(
        LOG_Q[:2, rows], LOG_Q[2, rows], w, cap=0.5
    ),
    "ceat": lambda rows, w: weighted_distance(1 + G[:, rows, 0] ** 2, G[:, rows, 1] ** 2, w),
}


@pytest.mark.parametrize("name", LOSSES)
class TestSampleWeight:
    def test_none_is_all_ones(self, name):
        rows = torch.arange(N_SAMPLES)
        ones = torch.ones(N_SAMPLES, dtype=torch.float64)
        torch.testing.assert_close(LOSSES[name](rows, ones), LOSSES[name](rows, None))

    def test_integers_repeat(self, name):
        """Normalised to mean 1, as the training set's weights are."""
        counts = torch.tensor([2, 0, 1, 3])
        weight = counts.double() * N_SAMPLES / counts.sum()
        repeated = LOSSES[name](torch.arange(N_SAMPLES).repeat_interleave(counts), None)
        found = LOSSES[name](torch.arange(N_SAMPLES), weight)
        torch.testing.assert_close(found, repeated, rtol=1e-12, atol=1e-12)
