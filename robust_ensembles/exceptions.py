"""Errors that deserve a name of their own; everything else is a ValueError or a TypeError."""

from torch import OutOfMemoryError


class NotDifferentiableError(TypeError):
    """A step of an estimator has no differentiable twin, so no gradient attack can pass it."""


class NonFiniteLossError(FloatingPointError):
    """A term of the training loss became NaN or infinite; the last good weights are restored."""


class TrainingMemoryError(OutOfMemoryError, MemoryError):
    """Training ran out of memory, on a CPU or an accelerator; the last finished epoch is kept.

    Parameters
    ----------
    message : str
    batch_size : int, default=0
        Half of the one that was too large; 0 if that was 1.
    """

    def __init__(self, message: str, batch_size: int = 0) -> None:
        super().__init__(message)
        self.batch_size = batch_size


class ModelFileError(ValueError):
    """A file holds no estimator that can be loaded: damaged, crafted, or of another kind."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set is neither on disk nor downloadable from here; says which file to put where."""
