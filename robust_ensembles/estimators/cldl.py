"""CLDL: label dependencies and gradient diversity (Wang and Liu 2022), "LSD" in its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _registry
from .._parameters import above, at_least, choice, param
from ..losses import (
    batch_mean,
    cldl_gradient_diversity,
    cldl_label_diversity,
    soft_label_divergence,
)
from ..modules import Ensemble, LabelConfusionModel
from ..training import TrainingStep, captured_embedding, embedding_size, input_gradients
from .adversarial_training import AdversarialTraining


@_registry.method(
    "cldl",
    family="gradients",
    paper="Wang and Liu 2022, arXiv:2206.14477; code named LSD",
    summary="learns soft labels and diversifies input gradients",
)
@dataclass(kw_only=True, repr=False, eq=False)
class CLDLEnsembleClassifier(AdversarialTraining):
    r"""Members that learn their own soft labels, and whose input gradients are orthogonal.

    .. math:: L = \tfrac1N \sum_i \mathrm{KL}(s_i \| p_i) - \alpha\, l_{ld} + \beta\, l_{gd}

    Soft labels :math:`s_i = \mathrm{softmax}(\gamma\, \mathrm{onehot}(y) + c_i)` come from a
    label confusion model that all members share, whose input is their embeddings; it is trained
    with the same loss and discarded afterwards. l_ld and l_gd are `cldl_label_diversity` and
    `cldl_gradient_diversity` of `robust_ensembles.losses`. Any network with a final linear layer
    works; the paper's networks have a 64-d embedding, ``module_params={"embedding_size": 64}``.

    Parameters
    ----------
    gamma : float, default=4.0
        Weight of the true class in the soft labels: CLDL_{gamma, alpha, beta} in the paper's
        tables, here for CIFAR-10; (3, 4, 4) for MNIST, (3, 2, 4) for Fashion-MNIST. It must grow
        with the number of classes: about 6.5 for 100.
    alpha : float, default=2.0
        Weight of the label diversity.
    beta : float, default=4.0
        Weight of the gradient diversity.
    formulation : {"paper", "released"}, default="paper"
        Sets the next three parameters, and `craft_bn`.
    label_diversity_on : {"soft_labels", "confusion_vectors"}, default=None
        What l_ld compares: the first in the paper, the second in the released code.
    jsd_reduction : {"sample", "element_mean"}, default=None
        See `cldl_label_diversity`.
    gradient_norm : {"pairs", "members"}, default=None
        See `cldl_gradient_diversity`.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        ``"torch1"`` shrinks the cosines of short gradients as torch did before 1.12.
    attack : BoundedAttack, default=None
        Adds adversarial training: the divergence from the soft labels of these examples. Its
        `clip_values` default to the estimator's box. None adds nothing.

    References
    ----------
    .. [1] L. Wang and B. Liu, "Adversarial Ensemble Training by Jointly Learning Label
       Dependencies and Member Models", 2022, arXiv:2206.14477; code as "LSD" by
       ZJLAB-AMMI.
    """

    gamma: float = param(4.0, above(0))
    alpha: float = param(2.0, at_least(0))
    beta: float = param(4.0, at_least(0))
    label_diversity_on: Literal["soft_labels", "confusion_vectors"] | None = param(
        None, choice("soft_labels", "confusion_vectors"), None
    )
    jsd_reduction: Literal["sample", "element_mean"] | None = param(
        None, choice("sample", "element_mean"), None
    )
    gradient_norm: Literal["pairs", "members"] | None = param(
        None, choice("pairs", "members"), None
    )
    cos_eps_mode: Literal["torch2", "torch1"] = param("torch2", choice("torch2", "torch1"))

    _second_order: ClassVar[bool] = True

    def _build_auxiliary(self, members: list[nn.Module], n_classes: int) -> nn.Module:
        sizes = [embedding_size(member, "CLDL") for member in members]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"CLDL's members share one label confusion model, so their embeddings must have "
                f"one size; they have {sizes}. Give them one, such as by "
                "module_params={'embedding_size': 64}"
            )
        return LabelConfusionModel(n_classes, sizes[0]).to(next(members[0].parameters()).dtype)

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        leaves = step.input_leaves()
        logits, c, s, divergence = self._soft_labels(step, leaves)
        g = input_gradients(divergence.mean(dim=1), leaves)
        terms = {
            "soft_label_divergence": _member_mean(divergence, step),
            "label_diversity": -self.alpha * self._label_diversity(s, c, step),
            "gradient_diversity": self.beta * self._gradient_diversity(g, step),
        }
        if x_adv is not None:
            adversarial, _, _, divergence = self._soft_labels(step, x_adv)
            terms["adversarial_divergence"] = _member_mean(divergence, step)
            coupling = self._coupling_terms(step, adversarial, reduce="mean", clean=logits)
            terms.update(coupling)
        return terms

    def _soft_labels(
        self, step: TrainingStep, inputs: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, confusion vectors c, soft labels s and KL(s || p) of every member."""
        v, logits = _embed(step.module, inputs)
        assert step.auxiliary is not None
        c = step.auxiliary(v)
        s = (self.gamma * F.one_hot(step.y, c.shape[-1]) + c).softmax(dim=-1)
        log_p = logits.log_softmax(dim=-1)
        return logits, c, s, soft_label_divergence(s, log_p, formulation=self.formulation)

    def _label_diversity(self, s: Tensor, c: Tensor, step: TrainingStep) -> Tensor:
        default = "soft_labels" if self.formulation == "paper" else "confusion_vectors"
        compared = s if (self.label_diversity_on or default) == "soft_labels" else c
        return cldl_label_diversity(
            compared,
            step.y,
            formulation=self.formulation,
            jsd_reduction=self.jsd_reduction,
            sample_weight=step.sample_weight,
        )

    def _gradient_diversity(self, g: Tensor, step: TrainingStep) -> Tensor:
        return cldl_gradient_diversity(
            g,
            formulation=self.formulation,
            gradient_norm=self.gradient_norm,
            cos_eps_mode=self.cos_eps_mode,
            sample_weight=step.sample_weight,
        )


def _member_mean(divergence: Tensor, step: TrainingStep) -> Tensor:
    """Mean over members of the weighted batch means."""
    return torch.stack([batch_mean(member, step.sample_weight) for member in divergence]).mean()


def _embed(module: Ensemble, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings and logits of each member on its own input, by one forward pass each."""
    embeddings, logits = [], []
    for member, x in zip(module, inputs, strict=True):
        with captured_embedding(member) as captured:
            logits.append(member(x))
        embeddings.append(captured[0])
    return torch.stack(embeddings), torch.stack(logits)
