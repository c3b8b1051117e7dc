"""Perturbing images in the feature space of one member: what DVERGE, LAFED and FASTEN share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from ..attacks.engine.ascent import Steps
from ..training import TrainingStep, derive_seed, distill, resolve_layers
from ._pretrained import PretrainedMixin
from .adversarial_training import AdversarialTrainingMixin


@dataclass(kw_only=True, repr=False, eq=False)
class DistillationMixin(PretrainedMixin, AdversarialTrainingMixin):
    """Parameters of the distillation of features, and the distilled images.

    Parameters
    ----------
    eps : float, default=0.07
        Radius of the perturbation (maximum norm), in the units of X.
    step_size : float, default=0.007
        Length of a step, in the units of X.
    n_steps : int, default=10
        Steps, with momentum 1 on gradients of unit L1 norm.
    layers : list of str, list of lists, or None, default=None
        Names of the layers whose outputs are features, as in `named_modules`, for all members
        or a list for each. None takes the outputs of convolutions, blocks and linear layers
        before their activation, the logits included.
    layer_schedule : {"epoch", "step"}, default="epoch"
        How often one of the layers is drawn. Members share the draw; where they have different
        numbers of layers, it is the relative depth.
    pretrained
        See `PretrainedMixin`.

    Attributes
    ----------
    layers_ : list of n_estimators lists of str
        The layers of each member.
    """

    eps: float = 0.07
    step_size: float = 0.007
    n_steps: int = 10
    layers: Sequence[str] | Sequence[Sequence[str]] | None = None
    layer_schedule: Literal["epoch", "step"] = "epoch"

    _distillation_constraints: ClassVar[dict[str, Any]] = {
        **PretrainedMixin._pretrained_constraints,
        "eps": [Interval(Real, 0, None, closed="left")],
        "step_size": [Interval(Real, 0, None, closed="neither")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "layers": [list, tuple, None],
        "layer_schedule": [StrOptions({"epoch", "step"})],
    }

    def _check_members(self, members: list[nn.Module]) -> None:
        super()._check_members(members)
        self.layers_ = resolve_layers(members, self.layers, self.input_shape_)

    def _layer_names(self, step: TrainingStep) -> list[str]:
        """The layer of each member in this step."""
        seed = step.epoch_seed if self.layer_schedule == "epoch" else step.seed
        depth = np.random.default_rng(derive_seed(seed, "layer")).random()
        return [names[int(depth * len(names))] for names in self.layers_]

    def _distill(self, step: TrainingStep) -> list[Tensor]:
        """Images that look like the batch and have a member's features of others, for each."""
        assert step.batch.x_target is not None
        walk = Steps(self.n_steps, self.step_size, decay=1.0)
        layers = self._layer_names(step)
        with step.frozen(self._craft_mode):
            return [
                distill(step, member, layer, x_target=step.batch.x_target, eps=self.eps, walk=walk)
                for member, layer in zip(step.module, layers, strict=True)
            ]
