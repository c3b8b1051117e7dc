r"""Batch normalisation with a closed-form double backward.

Per channel, with N values x, r the inverse standard deviation and
:math:`\hat x = r (x - \bar x)`, training mode computes :math:`y = w \hat x + b`, and

.. math:: P(u) = u - \bar u - \hat x\, \overline{u \hat x}, \qquad
    \partial_x L = w r P(g), \quad \partial_w L = \sum g \hat x, \quad \partial_b L = \sum g

for :math:`g = \partial_y L`. P is symmetric, which directly gives the derivative of the inner
product of a tensor v with :math:`\partial_x L`: by g it is :math:`w r P(v)`, by w it is
:math:`N r q` with :math:`q = \overline{v g} - \bar v \bar g - \overline{v \hat x}\,
\overline{g \hat x}`, and by x

.. math:: -w r^2 \bigl[(q - 2\, \overline{v \hat x}\, \overline{g \hat x}) \hat x
    + \overline{g \hat x} (v - \bar v) + \overline{v \hat x} (g - \bar g)\bigr].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .aten import Gradients, batch_norm, batch_norm_backward, needed_gradients


class _Statistics(NamedTuple):
    """Statistics that normalise x; `of_batch` is whether they depend on x."""

    mean: Tensor
    invstd: Tensor
    of_batch: bool

    def backward(
        self, grad_y: Tensor, x: Tensor, weight: Tensor | None, mask: Sequence[bool]
    ) -> Gradients:
        """Gradients by x, weight and bias, from the kernel of the first backward pass."""
        return batch_norm_backward(grad_y, x, weight, *self, mask)


class FastBatchNorm(Function):
    """Like `torch.nn.functional.batch_norm`; running statistics are updated in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        of_batch: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """See the class; called by torch."""
        y, mean, invstd = batch_norm(
            x, weight, bias, running_mean, running_var, of_batch, momentum, eps
        )
        if not of_batch and running_mean is not None and running_var is not None:
            # copies: the next batch may update the buffers before the backward pass
            mean, invstd = running_mean.clone(), (running_var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.of_batch = of_batch
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Gradients:
        """See the class; called by torch."""
        x, weight, mean, invstd = ctx.saved_tensors
        mask = needed_gradients(ctx, 3)
        statistics = _Statistics(mean, invstd, ctx.of_batch)
        grad_y = _laid_out_as(grad_y, x)
        if torch.is_grad_enabled():
            gradients = _FastBatchNormBackward.apply(grad_y, x, weight, *statistics, mask)
        else:
            gradients = _chosen(statistics.backward(grad_y, x, weight, mask), mask)
        return (*gradients, None, None, None, None, None)


class _FastBatchNormBackward(Function):
    """Gradients of batch normalisation by x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        of_batch: bool,
        mask: tuple[bool, ...],
    ) -> Gradients:
        # the kernel needs the sums of batch statistics anyway, and so does the double backward
        computed = (True, True, True) if of_batch else mask
        statistics = _Statistics(mean, invstd, of_batch)
        gradients = statistics.backward(grad_y, x, weight, computed)
        sums = gradients[1:] if of_batch else (None, None)
        ctx.save_for_backward(grad_y, x, weight, mean, invstd, *sums)
        ctx.of_batch = of_batch
        ctx.set_materialize_grads(False)
        return _chosen(gradients, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None) -> Any:
        grad_y, x, weight, mean, invstd, *sums = ctx.saved_tensors
        statistics = _Statistics(mean, invstd, ctx.of_batch)
        wanted = needed_gradients(ctx, 3)
        terms: list[Gradients] = []
        if v is not None:
            v = _laid_out_as(v, x)
            differentiate = _batch_term if ctx.of_batch else _fixed_term
            terms.append(differentiate(v, grad_y, x, weight, statistics, sums, wanted))
        if v_weight is not None or v_bias is not None:
            terms.append(_parameter_terms(v_weight, v_bias, grad_y, x, statistics, wanted))
        derivatives = [total([t for t in ts if t is not None]) for ts in zip(*terms, strict=True)]
        return (*_chosen(derivatives or (None,) * 3, wanted), None, None, None, None)


def _batch_term(
    v: Tensor,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: _Statistics,
    sums: Sequence[Tensor],
    wanted: tuple[bool, ...],
) -> Gradients:
    """Derivatives of <v, grad_x> by grad_y, x and weight with batch statistics."""
    n = x.numel() // x.shape[1]
    r = statistics.invstd
    gx_mean, g_mean = sums[0] / n, sums[1] / n
    by_grad_y, vx_sum, v_sum = statistics.backward(v, x, weight, (True, True, True))
    assert vx_sum is not None
    assert v_sum is not None
    vx_mean, v_mean = vx_sum / n, v_sum / n
    # the same kernel's sum of v (grad_y - its mean), in one pass without a product in memory
    centred = _Statistics(g_mean, torch.ones_like(r), True)
    vg_sum = centred.backward(v, grad_y, None, (False, True, False))[1]
    assert vg_sum is not None
    q = vg_sum / n - vx_mean * gx_mean
    if not wanted[1]:
        return by_grad_y, None, n * r * q
    scale = -r.square() if weight is None else -r.square() * weight
    by_v, by_g = scale * gx_mean, scale * vx_mean
    by_x = scale * r * (q - 2 * vx_mean * gx_mean)
    constant = -(by_x * statistics.mean + by_v * v_mean + by_g * g_mean)
    combined = _combination([(x, by_x), (v, by_v), (grad_y, by_g)], constant)
    return by_grad_y, combined, n * r * q


def _fixed_term(
    v: Tensor,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: _Statistics,
    sums: Sequence[Tensor],
    wanted: tuple[bool, ...],
) -> Gradients:
    """Derivatives of <v, grad_x> by grad_y, x and weight with running statistics."""
    by_grad_y = statistics.backward(v, x, weight, (True, False, False))[0]
    if not wanted[2]:
        return by_grad_y, None, None
    plain = _Statistics(torch.zeros_like(statistics.mean), statistics.invstd, False)
    return by_grad_y, None, plain.backward(v, grad_y, None, (False, True, False))[1]


def _parameter_terms(
    v_weight: Tensor | None,
    v_bias: Tensor | None,
    grad_y: Tensor,
    x: Tensor,
    statistics: _Statistics,
    wanted: tuple[bool, ...],
) -> Gradients:
    """Derivatives of <v_weight, grad_weight> + <v_bias, grad_bias> by grad_y, x and weight."""
    zero = torch.zeros_like(statistics.mean)
    slope = zero if v_weight is None else v_weight * statistics.invstd
    offset = zero if v_bias is None else v_bias
    by_grad_y = _combination([(x, slope)], offset - slope * statistics.mean)
    by_x = None
    if wanted[1] and v_weight is not None:
        by_x = statistics.backward(grad_y, x, v_weight, (True, False, False))[0]
    return by_grad_y, by_x, None


def _combination(terms: Sequence[tuple[Tensor, Tensor]], constant: Tensor) -> Tensor:
    """Sum of tensors times a factor for each channel, plus a constant for each channel."""
    first, factor = terms[0]
    zero = torch.zeros_like(constant)
    # with the statistics of a standard normal, normalisation is one fused multiplication and sum
    one = torch.ones_like(zero)
    result = batch_norm(first, factor, constant, zero, one, False, 0.0, 0.0)[0]
    rows = _rows(result)
    for tensor, factor in terms[1:]:
        rows.addcmul_(_rows(tensor), _along_rows(factor, result))
    return result


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )


def _laid_out_as(u: Tensor, x: Tensor) -> Tensor:
    """Give u the layout of x: mixed layouts take the kernels' slow path."""
    if _is_channels_last(x):
        return u.contiguous(memory_format=torch.channels_last)
    return u.contiguous()


def _rows(x: Tensor) -> Tensor:
    """View in which a factor for each channel applies to long contiguous runs of memory."""
    if _is_channels_last(x):
        n, channels, height, width = x.shape
        return x.permute(0, 2, 3, 1).view(n * height, width * channels)
    return x.view(*x.shape[:2], -1)


def _along_rows(factor: Tensor, x: Tensor) -> Tensor:
    """A factor for each channel in the shape of a row of `_rows`."""
    return factor.repeat(x.shape[3]) if _is_channels_last(x) else factor.unsqueeze(1)


def _chosen(gradients: Sequence[Tensor | None], mask: Sequence[bool]) -> Gradients:
    return tuple(g if m else None for g, m in zip(gradients, mask, strict=True))


def total(terms: Sequence[Tensor]) -> Tensor | None:
    """Sum of tensors; None for an empty sequence."""
    return reduce(torch.add, terms) if terms else None
