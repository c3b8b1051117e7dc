"""Exception classes of the package; all other errors are a ValueError or a TypeError."""

from torch import OutOfMemoryError


class NotDifferentiableError(TypeError):
    """A step of an estimator has no differentiable twin, so gradient attacks cannot be used."""


class NonFiniteLossError(FloatingPointError):
    """A term of the training loss became NaN or infinite; the last good weights are restored."""


class TrainingMemoryError(OutOfMemoryError, MemoryError):
    """Training ran out of memory, on a CPU or an accelerator; the last finished epoch is kept.

    Parameters
    ----------
    message : str
    batch_size : int, default=0
        Half of the size that was too large; 0 if that was 1.
    """

    def __init__(self, message: str, batch_size: int = 0) -> None:
        super().__init__(message)
        self.batch_size = batch_size


class ModelFileError(ValueError):
    """A file cannot be loaded as an estimator: it is damaged, crafted, or of another kind."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set was not found and cannot be downloaded; the message says which file to add."""
