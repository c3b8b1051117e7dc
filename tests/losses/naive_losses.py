"""The equations of the papers once more, in float64 numpy and plain loops, as slow as they read."""

from __future__ import annotations

import math

import numpy as np


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
    divisor = len(pairs(n_members)) if gradient_norm == "pairs" else n_members
    per_sample = [
        sum(abs(cosine(g[i, b], g[j, b], eps_mode)) for i, j in pairs(n_members)) / divisor
        for b in range(n_samples)
    ]
    return batch_mean(per_sample, sample_weight)


def ncen_regularizer(g, lambda_cos, lambda_norm, formulation, norm_sign=1, sample_weight=None):
    k, n_samples, _ = g.shape
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
