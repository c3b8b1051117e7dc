"""AutoAttack and its variant for ensembles: fixed sequences of attacks, worst case per sample."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from .. import _registry
from .._parameters import choice, param
from .apgd import APGD, TargetedAPGD
from .base import Attack
from .combined import WorstCase
from .engine.ascent import count_members
from .engine.balls import Box
from .engine.target import check_batch
from .fab import FAB
from .mora import MORA
from .square import Square

Version = Literal["standard", "plus", "rand"]


@dataclass(kw_only=True, repr=False, eq=False)
class Cascade(Attack):
    """Base class of fixed sequences of attacks.

    Cheap attacks come first; each attack runs on the samples not broken by those before it.

    Parameters
    ----------
    eps : float, default=8/255
        Radius of the ball, in the units of X.
    norm : {"linf", "l2"}, default="linf"
        Norm of the perturbation.
    n_queries : int, default=5000
        Queries of Square for each sample.
    clip_values : tuple of two floats, default=None
        Box that adversarial examples stay in; None takes the box of the estimator (or of the
        module's attribute `clip_values`), if it has one.
    batch_size : int, default=256
        Samples that go through the module at once. Does not change the result.
    random_state : int or None, default=0
        Seed of random starts. None draws a new seed for each call.
    """

    eps: float = 8 / 255
    norm: str = "linf"
    n_queries: int = 5000
    clip_values: Box | None = None
    batch_size: int = 256
    random_state: int | None = 0

    @abstractmethod
    def attacks(self, n_members: int = 1) -> list[Attack]:
        """The attacks in order, for an ensemble of `n_members` members."""

    def _shared(self) -> dict[str, Any]:
        names = ("eps", "norm", "clip_values", "batch_size", "random_state")
        return {name: getattr(self, name) for name in names}

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples for a torch module; see `Attack`."""
        self._validate()
        y = check_batch(module, X, y, self._box(module))
        worst = WorstCase(self.attacks(count_members(module, X)))
        return worst(module, X, y, stop_when_broken=stop_when_broken)

    def _validate(self) -> None:
        super()._validate()
        for attack in self.attacks():
            attack._validate()


@_registry.attack(
    "autoattack",
    kind="several",
    paper="Croce and Hein 2020",
    summary="the worst of `APGD`, `TargetedAPGD`, `FAB` and `Square` for each sample",
    count="n_queries",
)
@dataclass(kw_only=True, repr=False, eq=False)
class AutoAttack(Cascade):
    """The standard robustness evaluation: APGD twice, FAB and Square (Croce and Hein 2020).

    With too few classes for the DLR losses, plain differences of log-probabilities replace them;
    with fewer than ten classes, all wrong ones are targets.

    Parameters
    ----------
    version : {"standard", "plus", "rand"}, default="standard"
        ``"standard"``: APGD on the margin (which decides as cross-entropy does), targeted APGD,
        targeted FAB, Square. ``"plus"``: APGD on two losses and FAB with five restarts besides.
        ``"rand"``, for modules that draw random numbers: APGD on two losses, each gradient the
        mean of 20.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    """

    version: Version = param("standard", choice(*get_args(Version)))

    def attacks(self, n_members: int = 1) -> list[Attack]:
        """The attacks of this version in order, whatever the number of members."""
        shared = self._shared()
        square = Square(n_queries=self.n_queries, **shared)
        if self.version == "rand":
            return [APGD(loss=loss, n_gradients=20, **shared) for loss in ("margin", "dlr")]
        if self.version == "plus":
            walks = [APGD(loss=loss, n_restarts=5, **shared) for loss in ("margin", "dlr")]
            return [*walks, TargetedAPGD(**shared), FAB(n_restarts=5, **shared), square]
        return [APGD(**shared), TargetedAPGD(**shared), FAB(**shared), square]


@_registry.attack(
    "ensembleautoattack",
    kind="several",
    summary="`AutoAttack`, `MORA`, and every other way to combine the members",
    count="n_queries",
)
@dataclass(kw_only=True, repr=False, eq=False)
class EnsembleAutoAttack(Cascade):
    """AutoAttack for ensembles: attacks every way to combine the members.

    `APGD` on the log mean probability, on the mean logits, on the mean member margin and on each
    member alone; `MORA`; then targeted APGD, FAB and Square as in `AutoAttack`. Every example is
    evaluated on the deployed rule, and the worst case counts for each sample.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    .. [2] Y. Gao et al., "MORA: Improving Ensemble Robustness Evaluation with Model-Reweighing
       Attack", NeurIPS 2022.
    """

    def attacks(self, n_members: int = 1) -> list[Attack]:
        """The attacks in order, for an ensemble of `n_members` members."""
        shared = self._shared()
        rest = AutoAttack(n_queries=self.n_queries, **shared).attacks()
        if n_members == 1:
            return rest
        return [
            *swapped_aggregations(n_members, **shared),
            MORA(**shared),
            *rest[1:],
        ]


def swapped_aggregations(n_members: int, **shared: Any) -> list[Attack]:
    """APGD on each rule that could combine an ensemble, the deployed one first.

    Parameters
    ----------
    n_members : int
    **shared
        Parameters of each `APGD`.

    Returns
    -------
    attacks : list of APGD
    """
    members = [APGD(aggregation=i, **shared) for i in range(n_members)]
    return [
        APGD(**shared),
        APGD(aggregation="mean_logits", **shared),
        APGD(loss="member_margin", **shared),
        *members,
    ]
