"""The equations of the papers once more, in float64 numpy and plain loops, as slow as they read.

Both the losses and the whole objectives are compared with them; inputs to compare on are below.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

MEMBERS = [2, 3, 4, 5]
FORMULATIONS = ["paper", "released"]
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
with_weights = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def pairs(n_members):
    return [(i, j) for i in range(n_members) for j in range(i + 1, n_members)]


def norm(v):
    return max(math.sqrt(sum(float(e) ** 2 for e in v)), 1e-8)


def dot(a, b):
    return sum(float(e) * float(f) for e, f in zip(a, b, strict=True))


def cosine(a, b, eps_mode="torch2"):
    if eps_mode == "torch1":
        return dot(a, b) / math.sqrt(max(dot(a, a) * dot(b, b), 1e-16))
    return dot(a, b) / (norm(a) * norm(b))


def batch_mean(per_sample, sample_weight=None):
    weight = np.ones(len(per_sample)) if sample_weight is None else sample_weight
    return sum(float(w) * v for w, v in zip(weight, per_sample, strict=True)) / len(per_sample)


def softmax(z):
    e = np.exp(z - np.max(z))
    return e / e.sum()


def ensemble_log_proba(logits):
    n_members, n_samples, _ = logits.shape
    rows = []
    for b in range(n_samples):
        mean = sum(softmax(logits[i, b]) for i in range(n_members)) / n_members
        rows.append(np.log(mean))
    return np.array(rows)


def cldl_divergence(s, log_p, formulation):
    offset = 1e-6 if formulation == "released" else 0.0
    return [
        sum(
            s[b, c] * (math.log(s[b, c] + offset) - math.log(math.exp(log_p[b, c]) + offset))
            for c in range(s.shape[1])
        )
        for b in range(len(s))
    ]


def jensen_shannon_terms(p, q):
    """The summands, in bits: one for each class."""
    terms = []
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        terms.append((a * math.log2(a / middle) + b * math.log2(b / middle)) / 2)
    return terms


def cldl_label_diversity(s, y, jsd_reduction, sample_weight=None):
    n_members, n_samples, n_classes = s.shape
    if n_members == 1:
        return 0.0
    terms = {}
    for i, j in pairs(n_members):
        for b in range(n_samples):
            others = [c for c in range(n_classes) if c != y[b]]
            terms[i, j, b] = jensen_shannon_terms(s[i, b, others], s[j, b, others])
    if jsd_reduction == "element_mean":
        divergences = [
            batch_mean([np.mean(terms[i, j, b]) for b in range(n_samples)], sample_weight)
            for i, j in pairs(n_members)
        ]
        return math.log(np.mean(np.exp(divergences)) + 1e-6)
    per_sample = [
        math.log(np.mean([math.exp(sum(terms[i, j, b])) for i, j in pairs(n_members)]))
        for b in range(n_samples)
    ]
    return batch_mean(per_sample, sample_weight)


def cldl_gradient_diversity(g, gradient_norm, eps_mode="torch2", sample_weight=None):
    n_members, n_samples, _ = g.shape
    divisor = max(len(pairs(n_members)), 1) if gradient_norm == "pairs" else n_members
    per_sample = [
        sum(abs(cosine(g[i, b], g[j, b], eps_mode)) for i, j in pairs(n_members)) / divisor
        for b in range(n_samples)
    ]
    return batch_mean(per_sample, sample_weight)


def ncen_regularizer(g, lambda_cos, lambda_norm, formulation, norm_sign=1, sample_weight=None):
    k, n_samples, _ = g.shape
    if k == 1:
        return 0.0
    per_sample = []
    for b in range(n_samples):
        mean_gradient = sum(g[i, b] for i in range(k)) / k
        c = [cosine(g[i, b], mean_gradient) for i in range(k)]
        n = [norm(g[i, b]) for i in range(k)]
        n_bar = sum(n) / k + 1e-12
        u = [(n_i - sum(n) / k) / n_bar for n_i in n]
        cos_terms = [[(i, j) for j in range(k) if j != i] for i in range(k)]
        if formulation == "paper":
            direction = sum(c[i] * c[j] for row in cos_terms for i, j in row) / k
            magnitude = sum(u[i] * u[j] for row in cos_terms for i, j in row) / k
        else:
            direction = math.log(
                sum(math.exp(c[i]) * sum(math.exp(c[j]) for _, j in cos_terms[i]) for i in range(k))
            )
            magnitude = math.log(
                sum(math.exp(u[i] * sum(u[j] for _, j in cos_terms[i]) / k) for i in range(k))
            )
        per_sample.append(lambda_cos * direction + norm_sign * lambda_norm * magnitude)
    return batch_mean(per_sample, sample_weight)


def disparity_weights(h, tau, peers):
    n_members, n_samples = h.shape
    weights = np.ones((n_members, n_samples))
    if n_members < 3:
        return weights
    for m in range(n_members):
        for b in range(n_samples):
            others = [h[j, b] for j in range(n_members) if j != m]
            gaps = [abs(others[i] - others[j]) for i, j in pairs(len(others))]
            weights[m, b] = {
                "pair_sum": 1 + sum(math.exp(tau * gap) - 1 for gap in gaps),
                "pair_mean": 1 + sum(math.exp(tau * gap) - 1 for gap in gaps) / len(gaps),
                "range": math.exp(tau * (max(others) - min(others))),
                "exp_pair_mean": math.exp(tau * sum(gaps) / len(gaps)),
            }[peers]
    return weights


def without_label(row, label):
    return [float(v) for c, v in enumerate(row) if c != label]


def adp_log_determinant(p, y):
    """Of each sample."""
    n_members, n_samples, _ = p.shape
    values = []
    for b in range(n_samples):
        columns = []
        for i in range(n_members):
            column = without_label(p[i, b], y[b])
            length = math.sqrt(dot(column, column) + 1e-12)
            columns.append([v / length for v in column])
        gram = np.array([[dot(u, v) for v in columns] for u in columns])
        # the product of the eigenvalues, of which rounding makes none negative
        eigenvalues = np.linalg.eigvalsh(gram + 1e-6 * np.eye(n_members))
        values.append(sum(math.log(value) for value in eigenvalues))
    return values


def adp_regularizer(p, y, alpha, beta, sample_weight=None):
    n_members, n_samples, n_classes = p.shape
    log_determinants = adp_log_determinant(p, y)
    per_sample = []
    for b in range(n_samples):
        entropy = 0.0
        for c in range(n_classes):
            mean = sum(float(p[i, b, c]) for i in range(n_members)) / n_members
            entropy -= mean * math.log(mean + 1e-20)
        per_sample.append(-alpha * entropy - beta * log_determinants[b])
    return batch_mean(per_sample, sample_weight)


def gal_regularizer(g, eps_mode="torch2", sample_weight=None):
    n_members, n_samples, _ = g.shape
    per_sample = [
        math.log(sum(math.exp(cosine(g[i, b], g[j, b], eps_mode)) for i, j in pairs(n_members)))
        for b in range(n_samples)
    ]
    return batch_mean(per_sample, sample_weight)


def gpmr_regularizer(g, lambda_div, lambda_eq, formulation, sample_weight=None):
    """From gradients of batch means, which carry 1 / n_samples."""
    n_members, n_samples, _ = g.shape
    direction, magnitude = [], []
    for b in range(n_samples):
        total = sum(
            (cosine(g[i, b], g[j, b]) + 1 / (n_members - 1)) ** 2 for i, j in pairs(n_members)
        )
        direction.append(2 / (n_members * (n_members - 1)) * total)
        magnitude.append(spread([norm(n_samples * g[i, b]) for i in range(n_members)]))
    l_div = batch_mean(direction, sample_weight)
    if formulation == "released":
        weight = np.ones(n_samples) if sample_weight is None else sample_weight
        weighted = [
            [float(w) * v for w, v in zip(weight, g[i], strict=True)] for i in range(n_members)
        ]
        whole = [np.concatenate(v) / n_members for v in weighted]
        l_eq = spread([norm(v) for v in whole])
        return lambda_div * l_div + lambda_eq * l_eq
    scale = 1 / (n_members**2 * n_samples)
    return lambda_div * l_div + lambda_eq * scale * batch_mean(magnitude, sample_weight)


def spread(lengths):
    middle = sum(lengths) / len(lengths)
    return sum((n - middle) ** 2 for n in lengths) / len(lengths)


def trs_similarity(g, eps_mode="torch2", sample_weight=None):
    n_members, n_samples, _ = g.shape
    per_sample = [
        np.mean([abs(cosine(g[i, b], g[j, b], eps_mode)) for i, j in pairs(n_members)])
        for b in range(n_samples)
    ]
    return batch_mean(per_sample, sample_weight)


def trs_smoothness(g, norm_power, sample_weight=None):
    """As the paper sums: over the two ends of a pair, averaged over pairs."""
    n_members, n_samples, _ = g.shape
    per_sample = []
    for b in range(n_samples):
        lengths = [norm(g[i, b]) ** norm_power for i in range(n_members)]
        per_sample.append(np.mean([lengths[i] + lengths[j] for i, j in pairs(n_members)]))
    return batch_mean(per_sample, sample_weight)


def hierarchical_labels(y, n_members, n_classes, smoothing, formulation):
    labels = np.empty((n_members, len(y), n_classes))
    for i in range(n_members):
        for b in range(len(y)):
            for c in range(n_classes):
                true = c == y[b]
                if formulation == "released":
                    low, high = smoothing * i / (n_classes - 1), 1 - smoothing
                    labels[i, b, c] = min(max(float(true), low), high)
                else:
                    s = smoothing * i / (n_members - 1)
                    labels[i, b, c] = 1 - s if true else s / (n_classes - 1)
    return labels


def soft_cross_entropy(logits, labels):
    """Of (n_samples, n_classes)."""
    return [
        -sum(t * math.log(p) for t, p in zip(target, softmax(z), strict=True))
        for z, target in zip(logits, labels, strict=True)
    ]


def intra_model_divergence(q, sample_weight=None):
    """Of probabilities (n_views, n_samples, n_classes)."""
    n_views, n_samples, n_classes = q.shape
    per_sample = []
    for b in range(n_samples):
        mean = [sum(q[v, b, c] for v in range(n_views)) / n_views for c in range(n_classes)]
        divergences = [
            sum(mean[c] * math.log(mean[c] / q[v, b, c]) for c in range(n_classes))
            for v in range(n_views)
        ]
        per_sample.append(sum(divergences) / n_views)
    return batch_mean(per_sample, sample_weight)


def inter_model_divergence(q, q_of_peer, sample_weight=None, cap=math.inf):
    """Of probabilities (n_views, n_samples, n_classes), of two members."""
    n_views, n_samples, n_classes = q.shape
    per_sample = []
    for b in range(n_samples):
        total = 0.0
        for c in range(n_classes):
            peer = sum(q_of_peer[v, b, c] for v in range(len(q_of_peer))) / len(q_of_peer)
            own = sum(math.log(q[v, b, c]) for v in range(n_views)) / n_views
            total += peer * (math.log(peer) - own)
        per_sample.append(min(total, cap))
    return batch_mean(per_sample, sample_weight)
