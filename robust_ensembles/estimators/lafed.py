"""LAFED: latent feature diversification (Zhuang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _registry
from .._parameters import between, param
from ..losses import batch_mean, hierarchical_labels, soft_cross_entropy
from ..training import TrainingStep, derive_seed, features, generator, replaced_output
from .feature_space import FeatureSpaceMethod


@_registry.method(
    "lafed",
    family="features",
    paper="Zhuang et al. 2024",
    summary="mixes the others' weaknesses in latent space and smooths labels by degrees",
)
@dataclass(kw_only=True, repr=False, eq=False)
class LAFEDEnsembleClassifier(FeatureSpaceMethod):
    r"""Members trained on the others' vulnerabilities, mixed in their own latent space.

    Member i is trained on an image distilled from one random donor c (see
    `DVERGEEnsembleClassifier`). At layer l, its features become

    .. math:: A\, f_i^l(x'_c) + (1 - A) \frac{1}{N-2} \sum_{j \ne i, c} f_i^l(x'_j),
              \qquad A \sim \mathrm{Beta}(1, 1)

    for each sample, and the loss is the cross-entropy with `hierarchical_labels`, whose smoothing
    increases with the index of the member. The paper's text was not available; this is a
    reconstruction from its abstract and its code, in which the mixing never runs.

    Parameters
    ----------
    smoothing : float, default=0.05
        Probability that the last member's labels assign to the other classes.
    formulation : {"paper", "released"}, default="paper"
        ``"released"`` mixes nothing, like the authors' code, and clamps labels; see
        `hierarchical_labels`.
    n_estimators : int, default=3
        Number of members, at least three; with two, use DVERGE.

    References
    ----------
    .. [1] W. Zhuang, L. Huang, C. Gao and N. Liu, "LAFED", 2024.

    Examples
    --------
    >>> from robust_ensembles import LAFEDEnsembleClassifier
    >>> clf = LAFEDEnsembleClassifier(pretrained=20, eps=0.15, step_size=0.015)
    """

    smoothing: float = param(0.05, between(0, 1, closed="left"))

    _paired_batches: ClassVar[bool] = True

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        self._check_n_estimators(
            3, "LAFED mixes features of at least two other members; use DVERGE for two"
        )

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        distilled = self._distill(step)
        draw = np.random.default_rng(derive_seed(step.seed, "donors"))
        donors = [int(draw.choice(_others(len(distilled), i))) for i in range(len(distilled))]
        if self.formulation == "released":
            logits = step.member_logits([distilled[c] for c in donors])
        else:
            logits = self._mixed_logits(step, donors, distilled)
        return {
            "smoothed_cross_entropy": self._smoothed_cross_entropy(logits, step),
            **self._adversarial_terms(step, x_adv, reduce="sum"),
        }

    def _mixed_logits(
        self, step: TrainingStep, donors: list[int], distilled: list[Tensor]
    ) -> Tensor:
        """Logits of each member on its donor's image, mixed with the others' at its layer."""
        layers = self._layer_names(step)
        with step.frozen(self._craft_mode), torch.no_grad():
            mixed_in = []
            for i, donor in enumerate(donors):
                rest = [distilled[j] for j in _others(len(distilled), i) if j != donor]
                of_rest = [features(step.module[i], layers[i], x) for x in rest]
                mixed_in.append(torch.stack(of_rest).mean(dim=0))
        logits = []
        for i, donor in enumerate(donors):
            mix = partial(_mix, _shares(step, i), mixed_in[i])
            with replaced_output(step.module[i], layers[i], mix):
                logits.append(step.module[i](distilled[donor]))
        return torch.stack(logits)

    def _smoothed_cross_entropy(self, logits: Tensor, step: TrainingStep) -> Tensor:
        labels = hierarchical_labels(
            step.y,
            n_members=len(logits),
            n_classes=logits.shape[-1],
            smoothing=self.smoothing,
            formulation=self.formulation,
            dtype=logits.dtype,
        )
        losses = soft_cross_entropy(logits, labels)
        return torch.stack([batch_mean(member, step.sample_weight) for member in losses]).sum()


def _others(n_members: int, i: int) -> list[int]:
    return [j for j in range(n_members) if j != i]


def _shares(step: TrainingStep, i: int) -> Tensor:
    """A for each sample, from Beta(1, 1): the uniform distribution."""
    noise = generator(derive_seed(step.seed, "mixing", i), step.x.device)
    return torch.rand(len(step.x), generator=noise, device=step.x.device, dtype=step.x.dtype)


def _mix(A: Tensor, mixed_in: Tensor, own: Tensor) -> Tensor:
    A = A.view(-1, *([1] * (own.ndim - 1)))
    return A * own + (1 - A) * mixed_in
