"""Scorers for scikit-learn's searches and cross-validation."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pickle import PicklingError
from typing import Any, ClassVar

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

from .._checks import as_array
from ..attacks import Attack, BoundedAttack, Transfer
from ..attacks.engine.target import BlackBox, as_classifier, refuse_dataset
from ..attacks.names import attack_from_name
from .robust import check_untargeted, correct_mask, robust_mask, weighted_fraction

Mask = NDArray[np.bool_]
_MAX_PASSES = 4


class SharedMasks:
    """Cache of robust masks for the latest few evaluations.

    An evaluation is one estimator object with its present weights and parameters, X and y. All are
    compared by content, so no stale mask is returned after more training, for other data, or for an
    attack with changed parameters. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._passes: OrderedDict[str, tuple[weakref.ref[Any], dict[str, Mask]]] = OrderedDict()
        self._kept: dict[int, Attack] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def mask(self, estimator: Any, X: ArrayLike, y: ArrayLike, attacks: tuple[Attack, ...]) -> Mask:
        """Samples that are classified correctly without an attack and under each of the attacks.

        Parameters
        ----------
        estimator : fitted estimator
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        attacks : tuple of Attack
            Empty for clean accuracy.

        Returns
        -------
        mask : bool ndarray of shape (n_samples,)
        """
        known = self._known(estimator, X, y)
        if not attacks:
            if "clean" not in known:
                known["clean"] = correct_mask(estimator, X, y)
            return known["clean"].copy()
        result = np.ones(np.shape(as_array(y, "y"))[:1], dtype=bool)
        for attack in attacks:
            key = self._key(attack)
            if key not in known:
                known[key] = robust_mask(estimator, X, y, attack=attack)
            result &= known[key]
        return result

    def _key(self, attack: Attack) -> str:
        """Description of an attack or, if it cannot be described, the identity of the object."""
        try:
            return str(joblib.hash((type(attack).__qualname__, attack)))
        except (pickle.PicklingError, AttributeError, TypeError):
            # such as an External attack with a local function; kept, so that its id is not reused
            self._kept[id(attack)] = attack
            return f"{id(attack)} {attack!r}"

    def _known(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, Mask]:
        """The cached masks of this evaluation."""
        refuse_dataset(X)
        state = _learnt(estimator)
        # stateless steps, such as a FunctionTransformer, use changed parameters at once
        settings = repr(estimator.get_params()) if hasattr(estimator, "get_params") else ""
        arrays = as_array(X, "X"), as_array(y, "y")
        try:
            key = joblib.hash((state, settings, *arrays))
        except (AttributeError, TypeError, PicklingError) as error:
            raise TypeError(f"X must hold numbers and y labels: {error}") from error
        with self._lock:
            owner, known = self._passes.get(key, (None, {}))
            # other estimators may have the same weights but other classes
            if owner is None or owner() is not estimator:
                known = {}
                self._passes[key] = weakref.ref(estimator), known
            self._passes.move_to_end(key)
            while len(self._passes) > _MAX_PASSES:
                self._passes.popitem(last=False)
        return known


def _learnt(estimator: Any) -> Any:
    """The trained state: the weights, or everything for a classifier without a module."""
    module = as_classifier(estimator, gradient=False)
    if isinstance(module, BlackBox):
        return estimator
    return {name: value.cpu().numpy() for name, value in module.state_dict().items()}


class RobustScorer:
    """Scorer ``(estimator, X, y) -> accuracy`` under the per-sample worst case of some attacks.

    Made by `make_robust_scorer`, `get_robust_scorer` and `robust_scoring`.

    Parameters
    ----------
    attacks : tuple of Attack
        Untargeted. An empty tuple gives clean accuracy.
    name : str
        Column name in skorch's `EpochScoring`.
    shared : SharedMasks, default=None
        Cache shared by the scorers of one dict.
    conditional : bool, default=False
        Whether to count only samples that are correct without an attack.
    """

    _sign: ClassVar[int] = 1

    def __init__(
        self,
        attacks: tuple[Attack, ...],
        name: str,
        shared: SharedMasks | None = None,
        *,
        conditional: bool = False,
    ) -> None:
        self.attacks, self.conditional = attacks, conditional
        self.__name__ = name
        self._shared = shared or SharedMasks()
        self._metadata_request = MetadataRequest(owner=self)
        self._metadata_request.score.add_request(param="sample_weight", alias=None)

    def __call__(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Fraction of the samples that remain correct.

        Parameters
        ----------
        estimator : fitted estimator
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        accuracy : float
        """
        clean = self._shared.mask(estimator, X, y, ()) if self.conditional else None
        return weighted_fraction(self.robust_mask(estimator, X, y), sample_weight, among=clean)

    def robust_mask(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> NDArray[np.bool_]:
        """Samples that remain correct.

        Parameters
        ----------
        estimator : fitted estimator
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)

        Returns
        -------
        mask : bool ndarray of shape (n_samples,)
        """
        return self._shared.mask(estimator, X, y, self.attacks)

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> RobustScorer:
        """Request sample weights, for scikit-learn's metadata routing.

        Parameters
        ----------
        sample_weight : bool, str or None, default=None

        Returns
        -------
        self : RobustScorer
        """
        self._metadata_request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def get_metadata_routing(self) -> Any:
        """Metadata that this scorer requests.

        Returns
        -------
        routing : MetadataRequest
        """
        return get_routing_for_object(self._metadata_request)

    def _accept_sample_weight(self) -> bool:
        return True

    def __repr__(self) -> str:
        conditional = ", conditional=True" if self.conditional else ""
        return f"RobustScorer({list(self.attacks)!r}, name={self.__name__!r}{conditional})"


def make_robust_scorer(
    attack: Attack, *, name: str | None = None, conditional: bool = False
) -> RobustScorer:
    """Scorer for one attack.

    Parameters
    ----------
    attack : Attack
        Untargeted.
    name : str, default=None
        None is the attack's class in lower case.
    conditional : bool, default=False
        Whether to count only samples that are correct without an attack.

    Returns
    -------
    scorer : RobustScorer

    Raises
    ------
    TypeError, ValueError
        If `attack` is not an attack, is targeted, or has invalid parameters.

    Examples
    --------
    >>> from robust_ensembles.attacks import PGD
    >>> from robust_ensembles.metrics import make_robust_scorer
    >>> make_robust_scorer(PGD(eps=0.1))
    RobustScorer([PGD(eps=0.1)], name='pgd')
    """
    check_untargeted(attack)
    label = name or type(attack).__name__.lower()
    return RobustScorer((attack,), label, conditional=conditional)


def make_transfer_scorer(
    surrogate: Any,
    attack: BoundedAttack | Sequence[BoundedAttack] | None = None,
    *,
    name: str = "transfer",
    conditional: bool = False,
) -> RobustScorer:
    """Scorer for a black-box attack: examples made on surrogates, the worst case for each sample.

    Parameters
    ----------
    surrogate : fitted estimator, nn.Module, or sequence of these
        See `Transfer`. It must not be the scored estimator.
    attack : BoundedAttack or sequence of BoundedAttack, default=None
        None is ``PGD()``.
    name : str, default="transfer"
    conditional : bool, default=False
        Whether to count only samples that are correct without an attack.

    Returns
    -------
    scorer : RobustScorer
    """
    return make_robust_scorer(Transfer(surrogate, attack), name=name, conditional=conditional)


def get_robust_scorer(name: str) -> RobustScorer:
    """Scorer by name.

    Parameters
    ----------
    name : str
        ``"clean"``, or an attack with its number of steps, norm and eps, such as ``"fgsm"``,
        ``"autoattack_linf_8_255"``, ``"mora"`` or ``"cw40_l2_0.5"``; omitted parts take the
        attack's defaults.

    Returns
    -------
    scorer : RobustScorer

    Examples
    --------
    >>> from robust_ensembles.metrics import get_robust_scorer
    >>> get_robust_scorer("pgd40_l2_0.5")
    RobustScorer([PGD(eps=0.5, n_steps=40, norm='l2')], name='pgd40_l2_0.5')
    """
    if isinstance(name, str) and name == "clean":
        return RobustScorer((), name)
    return make_robust_scorer(attack_from_name(name), name=name)


def robust_scoring(
    *attacks: str | Attack,
    eps: float | None = None,
    norm: str | None = None,
    clip_values: tuple[float, float] | None = None,
    surrogate: Any = None,
    conditional: bool = False,
) -> dict[str, RobustScorer]:
    """Scorers for `GridSearchCV` and `cross_validate`: clean, each attack, and their worst case.

    Parameters
    ----------
    *attacks : str or Attack
        Names as in `get_robust_scorer`, or attacks. At least one.
    eps, norm, clip_values
        For attack names without them. Attacks given as objects keep their own.
    surrogate : fitted estimator, nn.Module, or sequence of these, default=None
        Models on which attacks named ``"transfer"`` make their examples.
    conditional : bool, default=False
        Whether to count only samples that are correct without an attack (not for ``"clean"``).

    Returns
    -------
    scoring : dict of RobustScorer
        ``"clean"``, one for each attack under its name, and ``"worst"``, the accuracy on the
        samples that withstand all of them. Each attack runs once for all scorers.

    Examples
    --------
    >>> from robust_ensembles.metrics import robust_scoring
    >>> list(robust_scoring("fgsm", "pgd20", eps=0.1))
    ['clean', 'fgsm', 'pgd20', 'worst']
    """
    if not attacks:
        raise ValueError("robust_scoring needs an attack at least: robust_scoring('pgd20')")
    named: dict[str, Attack] = {}
    for attack in attacks:
        if isinstance(attack, str):
            key, made = (
                attack,
                attack_from_name(
                    attack, eps=eps, norm=norm, clip_values=clip_values, surrogate=surrogate
                ),
            )
        else:
            key, made = make_robust_scorer(attack).__name__, attack
        named[_new_key(key, named)] = made
    shared = SharedMasks()
    scoring = {"clean": RobustScorer((), "clean", shared)}
    for key, each in {
        **{k: (v,) for k, v in named.items()},
        "worst": tuple(named.values()),
    }.items():
        scoring[key] = RobustScorer(each, key, shared, conditional=conditional)
    return scoring


def _new_key(key: str, taken: Iterable[str]) -> str:
    """The key itself, or with the first number that makes it unique."""
    taken = {"clean", "worst", *taken}
    if key not in taken:
        return key
    return next(f"{key}_{i}" for i in range(2, len(taken) + 2) if f"{key}_{i}" not in taken)
