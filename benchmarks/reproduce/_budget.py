"""How much of the papers' work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# CLDL's tables are said to be averages over five runs; the other papers speak of no repetition
_SEEDS = {"cldl": 5, "ncen": 1, "ceat": 1}
_LEAST_IMAGES = 100


@dataclass(frozen=True)
class Budget:
    """Parts of the full work, and numbers that win over them.

    Parameters
    ----------
    fraction : float, default=1.0
        Of epochs, seeds and test images.
    epochs, seeds, images, train_images : int, default=None
        Numbers instead. All training images are taken unless `train_images` says otherwise.
    precision : {"float32", "bfloat16"}, default="float32"
        Of the trainings; attacks that measure always compute in float32.
    batch_size : int, default=None
        Of the trainings; None is the recipes'. Few epochs on few images take too few steps to learn
        anything in batches of 128.
    """

    fraction: float = 1.0
    epochs: int | None = None
    seeds: int | None = None
    images: int | None = None
    train_images: int | None = None
    precision: str = "float32"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"--budget must be above 0 and at most 1; got {self.fraction}")
        for name in ("epochs", "seeds", "images", "train_images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {value}")

    def epochs_of(self, full: int) -> int:
        """Epochs for a recipe that has so many."""
        return self.epochs or max(1, round(self.fraction * full))

    def seeds_of(self, paper: str) -> list[int]:
        """Seeds of the targets."""
        return list(range(self.seeds or max(1, round(self.fraction * _SEEDS[paper]))))

    def images_of(self, full: int) -> int:
        """Test images out of so many."""
        wanted = self.images or max(_LEAST_IMAGES, round(self.fraction * full))
        return min(wanted, full)

    def train_images_of(self, full: int) -> int:
        """Training images out of so many."""
        return min(self.train_images or full, full)

    def title(
        self, paper: str, *, epochs: Iterable[int], images: int, of_images: int, train: str
    ) -> str:
        """What is done, for a title.

        Parameters
        ----------
        paper : str
        epochs : iterable of int
            Of the recipes.
        images, of_images : int
            Test images that are taken, and that there are.
        train : str
            What `trained_on` says.
        """
        full = sorted(set(epochs))
        done = [self.epochs_of(number) for number in full]
        seeds = len(self.seeds_of(paper))
        parts = [
            _part(done, full, "epochs"),
            _part([seeds], [max(seeds, _SEEDS[paper])], "seeds"),
            _part([images], [of_images], "images"),
        ]
        return f"at {', '.join(parts)}{train}"

    def training(self) -> dict[str, Any]:
        """Parameters that win over the recipes'."""
        batches = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return {"precision": self.precision, **batches}

    def trained_on(self, full: int) -> str:
        """Which part of the training images, and how, where it is not all and by the recipes."""
        taken = self.train_images_of(full)
        hows = [] if taken == full else [f"on {taken} of {full} images"]
        hows += [] if self.batch_size is None else [f"in batches of {self.batch_size}"]
        hows += [] if self.precision == "float32" else [f"in {self.precision}"]
        return "".join(f", trained {how}" for how in hows)


def _part(done: list[int], full: list[int], what: str) -> str:
    numbers = "/".join(map(str, done))
    if done == full:
        return f"all {numbers} {what}" if numbers != "1" else f"1 {what.removesuffix('s')}"
    return f"{numbers} of {'/'.join(map(str, full))} {what}"
