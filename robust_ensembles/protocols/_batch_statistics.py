"""Evaluation while BatchNorm uses the statistics of the batch, as NCEn's code does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks import BoundedAttack
from ..attacks._mode import untouched
from ._result import Mask
from .shared import Subject

_BATCH_SIZE = 64
_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer could use the statistics of a batch."""
    return any(isinstance(layer, _LAYERS) for layer in module.modules())


def right_by_batch(subject: Subject) -> Mask:
    """Which images are right in batches of 64, in their order, by the batch's own statistics."""
    with _batch_statistics(subject.module) as module, torch.no_grad():
        batches = zip(_batches(subject.x), _batches(subject.y), strict=True)
        return _joined([_right(module, x, y) for x, y in batches])


def attacked_by_batch(subject: Subject, attack: BoundedAttack, clean: Mask) -> tuple[Mask, Tensor]:
    """Attack batches of 64 of the images that were right, and judge each batch by itself.

    Parameters
    ----------
    subject : Subject
    attack : BoundedAttack
    clean : bool ndarray of shape (n_samples,)
        The images to attack.

    Returns
    -------
    right : bool ndarray of shape (n_samples,)
        Who was attacked and is still right.
    x_adv : Tensor of the shape of ``subject.x``
    """
    chosen = torch.from_numpy(clean).to(subject.x.device)
    right, x_adv = np.zeros_like(clean), subject.x.clone()
    if not clean.any():
        return right, x_adv
    made, kept = [], []
    box = getattr(subject.module, "clip_values", None)
    with _batch_statistics(subject.module) as module:
        for x, y in zip(_batches(subject.x[chosen]), _batches(subject.y[chosen]), strict=True):
            made.append(attack.craft(module, x, y, box=box, seed=attack._seed()))
            with torch.no_grad():
                kept.append(_right(module, made[-1], y))
    x_adv[chosen] = torch.cat(made)
    right[clean] = _joined(kept)
    return right, x_adv


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode for all but BatchNorm; everything is put back."""
    with untouched(module):
        for layer in module.modules():
            if isinstance(layer, _LAYERS):
                layer.train()
        yield module


def _batches(values: Tensor) -> list[Tensor]:
    parts = list(values.split(_BATCH_SIZE))
    # one image alone has no statistics: it joins the batch before
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _right(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return module(x).argmax(dim=1) == y


def _joined(masks: list[Tensor]) -> Mask:
    return torch.cat(masks).cpu().numpy()
