"""Display of a classifier's decisions in a plane around a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ...attacks import Attack, Target, resolve_target
from ...attacks.engine.balls import NORMS, Ball
from ...attacks.engine.forward import frozen, member_logits
from ...metrics.robust import check_untargeted
from ...modules.combiners import combiner_of
from .style import COLOURS, axes_for, norm_label, require_matplotlib, settle_layout, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Plane:
    """Points ``x + a u + b v``; u and v are orthogonal and of length 1 in the attack's norm.

    Parameters
    ----------
    x, u, v : Tensor of shape (1, ...)
    ball : type of Ball
        Its norm measures lengths.
    """

    x: Tensor
    u: Tensor
    v: Tensor
    ball: type[Ball]

    def look(
        self, module: nn.Module, coordinates: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Decisions on a square grid, and distances from x.

        Parameters
        ----------
        module : nn.Module
        coordinates : ndarray of shape (n_grid,)
            Values of a and of b.

        Returns
        -------
        decisions : int ndarray of shape (n_grid, n_grid)
            Class indices, with b along the rows.
        distances : ndarray of shape (n_grid, n_grid)
        """
        a = torch.as_tensor(coordinates).to(self.x).view(-1, *[1] * (self.x.ndim - 1))
        decisions, distances = [], []
        for b in coordinates.tolist():
            delta = a * self.u + b * self.v
            decisions.append(decide(module, self.x + delta))
            distances.append(self.ball.length(delta).double().cpu().numpy())
        return np.stack(decisions), np.stack(distances)


def decide(module: nn.Module, x: Tensor) -> NDArray[np.int64]:
    """Class indices predicted by a module in eval mode, (n_samples,)."""
    with frozen(module), torch.no_grad():
        chosen = combiner_of(module).log_proba(member_logits(module, x)).argmax(dim=1)
    indices: NDArray[np.int64] = chosen.cpu().numpy()
    return indices


def plane_through(x: Tensor, x_adv: Tensor, norm: str, random_state: int) -> tuple[Plane, float]:
    """Plane of a sample, its adversarial example and a random orthogonal direction.

    Parameters
    ----------
    x, x_adv : Tensor of shape (1, ...)
        Two different points with two features or more.
    norm : {"linf", "l2"}
    random_state : int
        Seed of the second direction.

    Returns
    -------
    plane : Plane
    distance : float
        Distance of the adversarial example from the sample.
    """
    ball = NORMS[norm]
    delta = x_adv - x
    distance = float(ball.length(delta))
    signs = np.random.default_rng(random_state).choice([-1.0, 1.0], size=tuple(x.shape))
    random = torch.as_tensor(signs).to(x)
    orthogonal = random - (random * delta).sum() / delta.square().sum() * delta
    return Plane(x, delta / distance, orthogonal / float(ball.length(orthogonal)), ball), distance


# for readers who do not see the colours
_HATCHES = ("", "//", "..", "\\\\", "xx", "++", "--")

# share of white in the regions' colours
_PALE = 0.55
_BORDER = "0.3"


class DecisionRegionDisplay:
    """Class regions in the plane of a sample, its adversarial example and a random direction.

    Use `from_estimator`. Both directions have length 1 in the attack's norm, so that both axes are
    in the units of X and the ball's boundary crosses them at eps. Points of the plane may be
    outside the box of valid inputs.

    Parameters
    ----------
    coordinates : array-like of shape (n_grid,)
        Along both axes, in the units of X; the sample is at 0.
    decisions : array-like of shape (n_grid, n_grid)
        Labels, with the random direction along the rows.
    distances : array-like of shape (n_grid, n_grid)
        Distances from the sample, in the attack's norm.
    eps : float
        Radius of the ball.
    norm : {"linf", "l2"}
    adversarial_distance : float
        Position of the adversarial example on the first axis.
    label, adversarial_label : object
        True label of the sample, and predicted label of the example.

    Attributes
    ----------
    coordinates, decisions, distances, eps, norm, adversarial_distance, label, adversarial_label
        As given, sequences of numbers as arrays.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
        Set by `plot`, like `ax_`.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """

    def __init__(
        self,
        coordinates: ArrayLike,
        decisions: ArrayLike,
        distances: ArrayLike,
        *,
        eps: float,
        norm: str,
        adversarial_distance: float,
        label: Any,
        adversarial_label: Any,
    ) -> None:
        self.coordinates = np.asarray(coordinates, dtype=np.float64)
        self.decisions = np.asarray(decisions)
        self.distances = np.asarray(distances, dtype=np.float64)
        self.eps, self.norm, self.adversarial_distance = eps, norm, adversarial_distance
        self.label, self.adversarial_label = label, adversarial_label
        square = (self.coordinates.size,) * 2
        if self.decisions.shape != square or self.distances.shape != square:
            raise ValueError(
                f"decisions and distances must have shape {square}, a row and a column for each "
                f"coordinate; got {self.decisions.shape} and {self.distances.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        attack: Attack,
        sample: int = 0,
        extent: float | None = None,
        n_grid: int = 101,
        random_state: int = 0,
        ax: Axes | None = None,
    ) -> DecisionRegionDisplay:
        """Attack a sample and evaluate the plane.

        Parameters
        ----------
        estimator : fitted estimator or nn.Module
            An estimator of this package, or a Pipeline or search that ends in one.
        X : array-like of shape (n_samples, ...)
            Raw X.
        y : array-like of shape (n_samples,)
            True labels.
        attack : Attack
            Untargeted, with `eps` and `norm`, such as ``PGD(eps=0.1)``.
        sample : int, default=0
            Index of the sample in X.
        extent : float, default=None
            Extent of the plane to each side, in the units of X; None is twice eps.
        n_grid : int, default=101
            Points along each axis.
        random_state : int, default=0
            Seed of the random direction.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : DecisionRegionDisplay

        Raises
        ------
        TypeError
            If the attack has no eps and norm.
        ValueError
            If the sample is misclassified without an attack, if the attack does not change it, or
            for invalid parameters.
        """
        require_matplotlib()
        reach = _checked_reach(attack, extent, n_grid)
        _check_sample(X, sample)
        target = resolve_target(estimator, X, gradient=not attack.gradient_free)
        target = target.on(np.asarray(X)[[sample]], np.asarray(y)[[sample]])
        x_adv = _attacked(target, attack, sample)
        plane, distance = plane_through(target.x, x_adv, attack.norm, random_state)
        coordinates = np.linspace(-reach, reach, n_grid)
        decisions, distances = plane.look(target.module, coordinates)
        return cls(
            coordinates,
            target.classes[decisions],
            distances,
            eps=attack.eps,
            norm=attack.norm,
            adversarial_distance=distance,
            label=np.asarray(y)[sample],
            adversarial_label=target.classes[decide(target.module, x_adv)[0]],
        ).plot(ax)

    def plot(self, ax: Axes | None = None) -> DecisionRegionDisplay:
        """Draw the regions, the ball and the two points.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        self : DecisionRegionDisplay
        """
        entries = ["adversarial example", *(f"class {name}" for name in np.unique(self.decisions))]
        ax = axes_for(ax, (5.6 + text_width(entries), 4.6))
        self._draw_regions(ax)
        if self.distances.min() < self.eps < self.distances.max():
            ball: dict[str, Any] = {"colors": "black", "linestyles": "--", "linewidths": 1.5}
            ax.contour(self.coordinates, self.coordinates, self.distances, [self.eps], **ball)
            # contours have no legend entry
            ax.plot([], [], "k--", label=rf"ball of $\varepsilon$ = {self.eps:.3g}")
        points: dict[str, Any] = {"linestyle": "none", "color": "black", "markeredgecolor": "white"}
        ax.plot(0, 0, marker="o", markersize=9, label="sample", **points)
        broken = self.adversarial_label != self.label
        name = "adversarial example" if broken else "failed attack"
        ax.plot(self.adversarial_distance, 0, marker="X", markersize=10, label=name, **points)
        # a square box at the left leaves room for the legend
        ax.set_aspect("equal", anchor="W")
        end = "adversarial example" if broken else "end of the attack"
        ax.set_xlabel(f"Towards the {end}\n({norm_label(self.norm)})")
        ax.set_ylabel(f"Random orthogonal direction\n({norm_label(self.norm)})")
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        settle_layout(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_regions(self, ax: Axes) -> None:
        """A colour and a hatch for each class that occurs, always the same for the true one."""
        from matplotlib.colors import to_rgb

        present = np.unique(self.decisions).tolist()
        present.sort(key=lambda name: name != self.label)
        grid = self.coordinates, self.coordinates
        # so that the borders show where three regions meet
        ax.set_facecolor(_BORDER)
        for i, name in enumerate(present, start=0 if self.label in present else 1):
            inside = (self.decisions == name).astype(float)
            colour = _PALE + (1 - _PALE) * np.array(to_rgb(COLOURS[i % len(COLOURS)]))
            hatch = _HATCHES[i % len(_HATCHES)]
            lines: dict[str, Any] = {"edgecolor": "0.6", "linewidth": 0}
            ax.contourf(*grid, inside, [0.5, 1.5], colors=[colour], hatches=[hatch]).set(**lines)
            ax.fill_between([], [], facecolor=colour, hatch=hatch, label=f"class {name}", **lines)
            if 0 < inside.mean() < 1:
                ax.contour(*grid, inside, [0.5], colors=_BORDER, linewidths=0.8)


def _checked_reach(attack: Attack, extent: float | None, n_grid: int) -> float:
    """The extent of the plane."""
    if not isinstance(attack, Attack) or not {"eps", "norm"} <= set(attack.get_params(deep=False)):
        raise TypeError(
            f"attack must have an eps and a norm, for the ball that is drawn, such as "
            f"PGD(eps=0.1); got {attack!r}"
        )
    check_untargeted(attack)
    if attack.eps == 0:
        raise ValueError("attack has eps=0, which leaves no direction to look along")
    reach = 2 * attack.eps if extent is None else extent
    if not 0 < reach < float("inf"):
        raise ValueError(f"extent must be positive, in the units of X, or None; got {extent!r}")
    if n_grid < 2:
        raise ValueError(f"n_grid must be at least 2; got {n_grid!r}")
    return float(reach)


def _check_sample(X: ArrayLike, sample: int) -> None:
    shape = np.shape(X)
    if not -shape[0] <= sample < shape[0]:
        raise ValueError(f"sample={sample} is the number of a sample, but X has {shape[0]}")
    if np.prod(shape[1:]) < 2:
        raise ValueError(f"a plane needs two features or more; X has shape {shape}")


def _attacked(target: Target, attack: Attack, sample: int) -> Tensor:
    """The adversarial example of the target's single image, which must differ from it."""
    if not target.right().all():
        raise ValueError(
            f"sample {sample} is misclassified without an attack: choose one that is right"
        )
    x_adv = attack(target.module, target.x, target.y)
    if (x_adv == target.x).all():
        raise ValueError(
            f"{attack!r} leaves sample {sample} where it is, so that no direction leads to an "
            "adversarial example: take another sample, a larger eps, or an attack such as PGD"
        )
    return x_adv
