"""Losses that attacks maximise, per sample, as functions of the members' logits.

All take logits (n_members, n_samples, n_classes), labels (n_samples,) and the combiner, the rule
by which the ensemble combines its members' outputs, and return (n_samples,). Log p denotes the
combined log-probabilities. `margin` and `cross_entropy` have the same gradient *direction* in
exact arithmetic; only `margin` keeps it in float32 when the ensemble is over-confident.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...modules.combiners import MEAN_PROBABILITY, Combiner

Loss = Callable[[Tensor, Tensor, Combiner], Tensor]

# rules by which a loss may combine the members; a number is a single member
AGGREGATIONS = ("mean_proba", "mean_logits")
# ties of the largest logits, in the units of logits
_DLR_EPS = 1e-12
_RELEASED_CONFIDENCE = 0.1


def margin(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    r"""Saturation-safe margin of the deployed mean probability.

    .. math:: \delta = \log\sum_{c\ne y} \bar p_c - \log \bar p_y

    from log-probabilities. The cross-entropy of the mean probability is softplus(delta), so
    ascending one ascends the other, but delta does not round to 0 at a logit gap of 16.
    """
    log_proba = combiner.log_proba(logits)
    return torch.logsumexp(_others(log_proba, y), dim=1) - of_label(log_proba, y)


def cw_margin(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    """Carlini-Wagner margin: the best wrong log-probability minus that of the label."""
    log_proba = combiner.log_proba(logits)
    return _others(log_proba, y).amax(dim=1) - of_label(log_proba, y)


def cross_entropy(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    """Cross-entropy of the mean probability, -log pbar_y."""
    return -of_label(combiner.log_proba(logits), y)


def mean_member_cross_entropy(
    logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY
) -> Tensor:
    """Mean of the members' own cross-entropies, in which each member counts, however confident."""
    log_proba = F.log_softmax(logits, dim=-1).mean(dim=0)
    return -of_label(log_proba, y)


def mean_member_margin(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    """Mean of the members' own margins, to break several at once, however confident they are."""
    return torch.stack([margin(z.unsqueeze(0), y, combiner) for z in logits]).mean(dim=0)


def dlr(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    r"""Difference of logits ratio (Croce and Hein 2020), of the log mean probabilities.

    .. math:: \frac{\max_{c\ne y} \log\bar p_c - \log \bar p_y}
              {\log\bar p_{\pi_1} - \log\bar p_{\pi_3}}

    with the classes in descending order. It is invariant to shifts and scalings of all logits.
    With two classes, it is the difference in the numerator alone.
    """
    log_proba = combiner.log_proba(logits)
    gap = _others(log_proba, y).amax(dim=1) - of_label(log_proba, y)
    if log_proba.shape[1] < 3:
        return gap
    top = log_proba.topk(3, dim=1).values
    return gap / (top[:, 0] - top[:, 2] + _DLR_EPS)


def difference(
    logits: Tensor, y: Tensor, target: Tensor, combiner: Combiner = MEAN_PROBABILITY
) -> Tensor:
    """Log mean probability of the target class, minus that of the label."""
    log_proba = combiner.log_proba(logits)
    return of_label(log_proba, target) - of_label(log_proba, y)


def targeted_dlr(
    logits: Tensor, y: Tensor, target: Tensor, combiner: Combiner = MEAN_PROBABILITY
) -> Tensor:
    r"""Difference of logits ratio between the label and a target class.

    .. math:: \frac{\log\bar p_t - \log \bar p_y}
              {\log\bar p_{\pi_1} - (\log\bar p_{\pi_3} + \log\bar p_{\pi_4}) / 2}

    With fewer than four classes, it is the difference in the numerator alone.
    """
    if logits.shape[-1] < 4:
        return difference(logits, y, target, combiner)
    top = combiner.log_proba(logits).topk(4, dim=1).values
    return difference(logits, y, target, combiner) / (
        top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _DLR_EPS
    )


def released_cw(logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY) -> Tensor:
    r"""The "CW" loss of the code released with several defences, for reproducing its numbers.

    .. math:: -\max(\log \bar p_y - \max_c (1 - [c = y]) \log\bar p_c + 0.1,\; 0)

    The mask puts a 0 among negative numbers, so the maximum is that 0: the runner-up never counts,
    and the gradient is zero as soon as :math:`\bar p_y < e^{-0.1}`. `cw_margin` is the sound one.
    """
    log_proba = combiner.log_proba(logits)
    wrong = log_proba.scatter(1, y[:, None], 0.0).amax(dim=1)
    return -F.relu(of_label(log_proba, y) - wrong + _RELEASED_CONFIDENCE)


def double_softmax_cross_entropy(
    logits: Tensor, y: Tensor, combiner: Combiner = MEAN_PROBABILITY
) -> Tensor:
    """Cross-entropy that uses the mean probability as logits of a softmax, as NCEn's code does.

    For reproducing its numbers: its gradients of confident ensembles nearly vanish, and with ten
    classes it never falls below 2.17.
    """
    proba = combiner.log_proba(logits).exp()
    return F.cross_entropy(proba.softmax(dim=1), y, reduction="none")


def of_label(log_proba: Tensor, y: Tensor) -> Tensor:
    """Entry of each row at its label."""
    return log_proba.gather(1, y[:, None]).squeeze(1)


def _others(log_proba: Tensor, y: Tensor) -> Tensor:
    # by index, never by multiplying with a mask: 0 is the largest possible log-probability
    return log_proba.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[str, Loss] = {
    "margin": margin,
    "cw_margin": cw_margin,
    "dlr": dlr,
    "cross_entropy": cross_entropy,
    "member_cross_entropy": mean_member_cross_entropy,
    "member_margin": mean_member_margin,
    "released_cw": released_cw,
    "double_softmax": double_softmax_cross_entropy,
}


def aggregate(logits: Tensor, aggregation: str | int) -> Tensor:
    """Logits whose deployed combination is that of another rule for the members.

    Parameters
    ----------
    logits : Tensor of shape (n_members, n_samples, n_classes)
    aggregation : {"mean_proba", "mean_logits"} or int
        The deployed rule; the mean of the logits, as a single member; or the member of this number.

    Returns
    -------
    logits : Tensor of shape (n_members or 1, n_samples, n_classes)
    """
    if aggregation == "mean_proba":
        return logits
    if aggregation == "mean_logits":
        return logits.mean(dim=0, keepdim=True)
    member = int(aggregation)
    if member >= len(logits):
        raise ValueError(
            f"aggregation={member} is the number of a member, but the ensemble has {len(logits)}: "
            f"0 to {len(logits) - 1}"
        )
    return logits[member : member + 1]
