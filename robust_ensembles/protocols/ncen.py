"""NCEn's evaluation protocol (Luo et al. 2022): white box, on correctly classified images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .._checks import one_of
from .._plain import described
from .._system import versions
from ..attacks import BIM, FGSM, MIM, PGD, BoundedAttack, Target
from ..attacks.engine.forward import frozen
from .shared import (
    Box,
    Mask,
    ProtocolResult,
    Row,
    clean_row,
    described_all,
    fixed_radii,
    named_targets,
    sound_attacks,
    white_box_rows,
)

_BATCH_SIZE = 64
_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer could use the statistics of a batch."""
    return any(isinstance(layer, _LAYERS) for layer in module.modules())


def right_by_batch(target: Target) -> Mask:
    """Images classified correctly in batches of 64, in order, with the batch's own statistics."""
    with _batch_statistics(target.module) as module, torch.no_grad():
        batches = zip(_batches(target.x), _batches(target.y), strict=True)
        return _joined([_right(module, x, y) for x, y in batches])


def attacked_by_batch(target: Target, attack: BoundedAttack, clean: Mask) -> tuple[Mask, Tensor]:
    """Attack correct images in batches of 64, and evaluate each batch separately.

    Parameters
    ----------
    target : Target
    attack : BoundedAttack
    clean : bool ndarray of shape (n_samples,)
        The images to attack.

    Returns
    -------
    right : bool ndarray of shape (n_samples,)
        Attacked images that are still correct.
    x_adv : Tensor of the shape of ``target.x``
    """
    chosen = torch.from_numpy(clean).to(target.x.device)
    right, x_adv = np.zeros_like(clean), target.x.clone()
    if not clean.any():
        return right, x_adv
    made, kept = [], []
    box = getattr(target.module, "clip_values", None)
    with _batch_statistics(target.module) as module:
        for x, y in zip(_batches(target.x[chosen]), _batches(target.y[chosen]), strict=True):
            made.append(attack.craft(module, x, y, box=box, seed=attack._seed()))
            with torch.no_grad():
                kept.append(_right(module, made[-1], y))
    x_adv[chosen] = torch.cat(made)
    right[clean] = _joined(kept)
    return right, x_adv


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode for all but BatchNorm; the modes are restored afterwards."""
    with frozen(module):
        for layer in module.modules():
            if isinstance(layer, _LAYERS):
                layer.train()
        yield module


def _batches(values: Tensor) -> list[Tensor]:
    parts = list(values.split(_BATCH_SIZE))
    # a single image has no statistics: it joins the previous batch
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _right(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return module(x).argmax(dim=1) == y


def _joined(masks: list[Tensor]) -> Mask:
    return torch.cat(masks).cpu().numpy()


# radii of FGSM and MI-FGSM, and of PGD and BIM
_FGSM_GRIDS = {"cifar10": (0.03, 0.09), "fashion-mnist": (0.1, 0.3)}
_PGD_GRIDS = {"cifar10": (0.01, 0.02), "fashion-mnist": (0.1, 0.15)}
_LOSSES = {"released": "double_softmax", "paper": "member_cross_entropy"}
_SOUND_STEPS = 40

_QUIRKS = (
    "Published AAE is conditional: accuracy on adversarial versions of the images that this "
    "ensemble has right when clean, so that it can exceed the clean accuracy (ACE).",
    "PGD and BIM take steps as long as eps, so that each step throws the image from one side of "
    "the ball to the other. 'sound' adds PGD-40 by steps of eps / 4, on the margin of the mean "
    "probability and on the mean of the members' cross-entropies.",
    "Examples are those after the last step, also where an earlier one was wrong.",
)
_OF_LOSS = {
    "released": "The released code ascends cross-entropy of the softmax of the mean of the "
    "members' softmax: three in all, so that gradients of confident ensembles all but vanish.",
    "paper": "The paper speaks of the averaged cross-entropy of all models, taken here; the "
    "released code ascends cross-entropy behind three softmax.",
}
_OF_BATCH_NORM = {
    "released": "The released code puts the ensemble into eval mode but not its members, which it "
    "keeps in a plain list. So where there is BatchNorm, it uses the statistics of each batch of "
    "64, and results depend on which images are attacked together. 'sound' uses the running "
    "statistics.",
    "eval": "BatchNorm, where there is any, uses its running statistics; in the released code it "
    "uses those of each batch of 64, since the members stay in training mode.",
}


def ncen(
    estimators: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    dataset: str | None = None,
    eps: float | Sequence[float] | None = None,
    loss: str = "released",
    batch_norm: str = "released",
    clip_values: Box | None = (0.0, 1.0),
    batch_size: int = 256,
    random_state: int = 123,
) -> ProtocolResult:
    """NCEn's white box: FGSM, MI-FGSM, PGD and BIM on images that an ensemble has correct.

    In the maximum norm: FGSM; MI-FGSM with 40 steps of 0.01; PGD with 40 steps of length eps from
    a random start; BIM with 10 steps of length eps.

    The numbers of the paper are ``faithful``: ACE in the rows ``attack == "clean"``, AAE with
    ``metric == "conditional"``. The sound numbers are ``sound`` with ``metric ==
    "unconditional"``: on all images, the worst case of the row's attack and PGD-40 with steps of
    eps / 4 on two losses.

    Parameters
    ----------
    estimators : fitted estimator or dict of these
        By name.
    X : array-like of shape (n_samples, ...)
        Test images in [0, 1] or uint8; in the paper all 10,000.
    y : array-like of shape (n_samples,)
        Labels.
    dataset : {"cifar10", "fashion-mnist"}, default=None
        Sets the radii. None requires `eps`.
    eps : float or sequence of float, default=None
        Radii for all four attacks in the units of X, instead of those of the data set.
    loss : {"released", "paper"}, default="released"
        Loss of the faithful attacks: cross-entropy behind three softmax, as in the code; or the
        mean of the members' cross-entropies, as in the text.
    batch_norm : {"released", "eval"}, default="released"
        Whether BatchNorm in the faithful numbers uses the statistics of each batch of 64, in the
        order of X, as the code does, or the running statistics. No effect without BatchNorm.
    clip_values : tuple of two floats or None, default=(0, 1)
        Box of the examples; None uses that of the estimator.
    batch_size : int, default=256
        Images attacked at once if batch statistics are not used. Does not change the result.
    random_state : int, default=123
        Seed of the random starts; the default is that of the code.

    Returns
    -------
    result : ProtocolResult

    Raises
    ------
    ValueError
        For unknown names, or if neither `dataset` nor `eps` is given.

    References
    ----------
    .. [1] W. Luo, H. Zhang, L. Kong, Z. Chen and K. Tang, "Defending Adversarial Examples by
       Negative Correlation Ensemble", 2022, arXiv:2206.10334, tables II to IV, and the
       code
       released with it.
    """
    one_of(loss, _LOSSES, "ncen: loss")
    one_of(batch_norm, _OF_BATCH_NORM, "ncen: batch_norm")
    shared: dict[str, Any] = {
        "clip_values": clip_values,
        "batch_size": batch_size,
        "random_state": random_state,
    }
    attacks = released_attacks(_grids(dataset, eps), _LOSSES[loss], **shared)
    sound = {e: sound_attacks(e, n_steps=_SOUND_STEPS, **shared) for e in attacks}
    rows: list[Row] = []
    for target in named_targets(estimators, X, y):
        play = _Play(target, batch_norm)
        rows.append(clean_row(target, published=True, clean=play.clean))
        for e, named in attacks.items():
            rows += white_box_rows(
                target, e, named, sound[e], play, published="conditional", clean=play.clean
            )
    settings = {
        "dataset": dataset,
        "eps": list(attacks),
        "n_images": len(np.asarray(y)),
        "loss": loss,
        "batch_norm": batch_norm,
        "estimators": described_all(estimators),
        "attacks": {
            "faithful": [described(a) for named in attacks.values() for [a] in named.values()],
            "sound": [described(a) for several in sound.values() for a in several],
        },
        "versions": versions(),
    }
    quirks = [*_QUIRKS, _OF_LOSS[loss], _OF_BATCH_NORM[batch_norm]]
    return ProtocolResult("NCEn", rows, settings, quirks)


def released_attacks(
    grids: dict[str, tuple[float, ...]], loss: str, **shared: Any
) -> dict[float, dict[str, list[BoundedAttack]]]:
    """The attacks at each eps, by name.

    Parameters
    ----------
    grids : dict of tuples of float
        Radii of each attack.
    loss : str
    **shared
        Other parameters of each attack.

    Returns
    -------
    attacks : dict of dicts of lists of BoundedAttack
    """
    attacks: dict[float, dict[str, list[BoundedAttack]]] = {}
    for eps in sorted({eps for grid in grids.values() for eps in grid}):
        params = {"eps": eps, "loss": loss, **shared}
        made: dict[str, BoundedAttack] = {
            "FGSM": FGSM(**params),
            "MI-FGSM": MIM(n_steps=40, step_size=0.01, **params),
            "PGD": PGD(n_steps=40, step_size=eps, **params),
            "BIM": BIM(n_steps=10, step_size=eps, **params),
        }
        attacks[eps] = {name: [attack] for name, attack in made.items() if eps in grids[name]}
    return attacks


def _grids(
    dataset: str | None, eps: float | Sequence[float] | None
) -> dict[str, tuple[float, ...]]:
    """Radii of each attack."""
    return {
        name: fixed_radii("ncen", dataset, eps, grids)
        for names, grids in (("FGSM MI-FGSM", _FGSM_GRIDS), ("PGD BIM", _PGD_GRIDS))
        for name in names.split()
    }


class _Play:
    """Runs the paper's attacks on one ensemble and counts successes as the paper does."""

    def __init__(self, target: Target, batch_norm: str) -> None:
        self.by_batch = batch_norm == "released" and has_batch_norm(target.module)
        self.clean = right_by_batch(target) if self.by_batch else target.right()

    def __call__(self, target: Target, attack: BoundedAttack) -> tuple[Mask, Mask]:
        """Images that remain correct as the paper counts, and images correct as deployed."""
        if self.by_batch:
            right, x_adv = attacked_by_batch(target, attack, self.clean)
            return right, ~target.broken(x_adv)
        right = ~target.broken(target.last_iterates(attack))
        return right & self.clean, right
