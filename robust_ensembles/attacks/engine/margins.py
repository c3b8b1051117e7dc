"""What an attack makes large: per-sample losses of the members' logits.

All take logits (n_members, n_samples, n_classes) and labels (n_samples,), and return
(n_samples,). The first two have the same gradient *direction* in exact arithmetic; only the first
keeps it in float32 when the ensemble is over-confident.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._system import is_out_of_memory
from ...losses import ensemble_log_proba


def member_logits(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of every member, (n_members, n_samples, n_classes); one member for a plain module."""
    of_members: Callable[[Tensor], Tensor] | None = getattr(module, "member_logits", None)
    return module(x).unsqueeze(0) if of_members is None else of_members(x)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Saturation-safe margin of the deployed mean probability.

    .. math:: \delta = \log\sum_{c\ne y} \bar p_c - \log \bar p_y

    from log-probabilities. The cross-entropy of the mean probability is softplus(delta), so
    ascending one ascends the other, but delta does not round to 0 at a logit gap of 16.
    """
    log_proba = ensemble_log_proba(logits)
    return torch.logsumexp(_others(log_proba, y), dim=1) - of_label(log_proba, y)


def cw_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Carlini-Wagner margin: the best wrong log-probability minus that of the label."""
    log_proba = ensemble_log_proba(logits)
    return _others(log_proba, y).amax(dim=1) - of_label(log_proba, y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the mean probability, -log pbar_y."""
    return -of_label(ensemble_log_proba(logits), y)


def mean_member_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of the members' own cross-entropies, which no confident member can hide from."""
    log_proba = F.log_softmax(logits, dim=-1).mean(dim=0)
    return -of_label(log_proba, y)


def mean_member_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of the members' own margins: what breaks several at once, however sure they are."""
    return torch.stack([margin(z.unsqueeze(0), y) for z in logits]).mean(dim=0)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Difference of logits ratio (Croce and Hein 2020), of the log mean probabilities.

    .. math:: \frac{\max_{c\ne y} \log\bar p_c - \log \bar p_y}
              {\log\bar p_{\pi_1} - \log\bar p_{\pi_3}}

    with the classes in descending order. It does not change when all logits are shifted or
    scaled. Two classes have no third one: the bare margin then.
    """
    log_proba = ensemble_log_proba(logits)
    gap = _others(log_proba, y).amax(dim=1) - of_label(log_proba, y)
    if log_proba.shape[1] < 3:
        return gap
    top = log_proba.topk(3, dim=1).values
    return gap / (top[:, 0] - top[:, 2] + _DLR_EPS)


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Log mean probability of a class to move towards, minus that of the label."""
    log_proba = ensemble_log_proba(logits)
    return of_label(log_proba, target) - of_label(log_proba, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    r"""Difference of logits ratio between the label and a class to move towards.

    .. math:: \frac{\log\bar p_t - \log \bar p_y}
              {\log\bar p_{\pi_1} - (\log\bar p_{\pi_3} + \log\bar p_{\pi_4}) / 2}

    Fewer than four classes have no fourth one: the bare difference then.
    """
    if logits.shape[-1] < 4:
        return difference(logits, y, target)
    top = ensemble_log_proba(logits).topk(4, dim=1).values
    return difference(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _DLR_EPS)


def released_cw(logits: Tensor, y: Tensor) -> Tensor:
    r"""The "CW" loss of the code released with several defences, for reproducing its numbers.

    .. math:: -\max(\log \bar p_y - \max_c (1 - [c = y]) \log\bar p_c + 0.1,\; 0)

    The mask puts a 0 among negative numbers, so the maximum is that 0: the runner-up never counts,
    and the gradient is zero as soon as :math:`\bar p_y < e^{-0.1}`. `cw_margin` is the sound one.
    """
    log_proba = ensemble_log_proba(logits)
    wrong = log_proba.scatter(1, y[:, None], 0.0).amax(dim=1)
    return -F.relu(of_label(log_proba, y) - wrong + _RELEASED_CONFIDENCE)


def double_softmax_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy that takes softmax of the mean probability for logits, as NCEn's code does.

    For reproducing its numbers: with ten classes it never falls below 2.17, and gradients of
    confident ensembles all but vanish.
    """
    proba = ensemble_log_proba(logits).exp()
    return F.cross_entropy(proba.softmax(dim=1), y, reduction="none")


def of_label(log_proba: Tensor, y: Tensor) -> Tensor:
    """Entry of each row at its label."""
    return log_proba.gather(1, y[:, None]).squeeze(1)


def _others(log_proba: Tensor, y: Tensor) -> Tensor:
    # by index, never by multiplying with a mask: 0 is the largest log-probability there is
    return log_proba.scatter(1, y[:, None], -torch.inf)


# ties of the largest logits, in the units of logits
_DLR_EPS = 1e-12
_RELEASED_CONFIDENCE = 0.1

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
    """Members as another rule than the deployed one would combine them.

    Parameters
    ----------
    logits : Tensor of shape (n_members, n_samples, n_classes)
    aggregation : {"mean_proba", "mean_logits"} or int
        The deployed rule; the mean of the logits as the one member there is; or one member alone.

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


AGGREGATIONS = ("mean_proba", "mean_logits")


CraftMode = Literal["eval", "train_frozen_stats", "train"]


@contextmanager
def frozen(module: nn.Module, mode: CraftMode = "eval") -> Iterator[nn.Module]:
    """Freeze a module's parameters and set its mode; put everything back, whatever happens.

    Parameters
    ----------
    module : nn.Module
    mode : {"eval", "train_frozen_stats", "train"}, default="eval"
        ``"eval"`` for evaluation. In training: ``"train_frozen_stats"`` uses batch statistics
        but restores the buffers afterwards, ``"train"`` lets the iterates of the attack move
        BatchNorm's running statistics, as released code does.

    Yields
    ------
    module : nn.Module
    """
    training = {m: m.training for m in module.modules()}
    requires_grad = {p: p.requires_grad for p in module.parameters()}
    buffers = [] if mode == "train" else _buffers(module)
    try:
        module.train(mode != "eval")
        for parameter in requires_grad:
            parameter.requires_grad_(False)
        yield module
    finally:
        for submodule, was_training in training.items():
            submodule.training = was_training
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                buffer.copy_(value)
                owner._buffers[name] = buffer  # a forward may have put another in its place


def _buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


log = logging.getLogger("robust_ensembles")


class Minibatches:
    """Runs functions of samples part by part, in smaller parts once memory has run out.

    Parameters
    ----------
    size : int or None, default=None
        Samples of a part at most; None is all, whatever happens.

    Attributes
    ----------
    size : int or None
        Halved where memory runs out, for all later calls.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def map(self, function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
        """What a function returns for all samples.

        Parameters
        ----------
        function : callable
            From tensors with one row per sample to a tuple of such tensors.
        *rows : Tensor of shape (n_samples, ...)

        Returns
        -------
        results : tuple of Tensor of shape (n_samples, ...)
        """
        n_samples = len(rows[0])
        if self.size is None:
            return function(*rows)
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        while done < n_samples or not parts:
            end = min(done + self.size, n_samples)
            made = self._attempt(function, [r[done:end] for r in rows])
            if made is not None:
                parts.append(made)
                done = end
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    def _attempt(
        self, function: Callable[..., tuple[Tensor, ...]], rows: list[Tensor]
    ) -> tuple[Tensor, ...] | None:
        """What the function returns; None, and smaller parts from now on, if memory ran out."""
        n_samples = len(rows[0])
        try:
            return function(*rows)
        except (RuntimeError, MemoryError) as error:
            if n_samples < 2 or not is_out_of_memory(error):
                raise
            self.size = n_samples // 2
            log.warning(
                "out of memory with %d samples at once; going on with %d", n_samples, self.size
            )
        return None


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device of a module's first parameter, or the default for a module without any."""
    return next((parameter.device for parameter in module.parameters()), default)
