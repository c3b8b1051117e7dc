"""Errors that deserve a name of their own; everything else is a ValueError or a TypeError."""


class NotDifferentiableError(TypeError):
    """A step of an estimator has no differentiable twin, so no gradient attack can pass it."""


class NonFiniteLossError(FloatingPointError):
    """A term of the training loss became NaN or infinite; the last good weights are restored."""


class ModelFileError(ValueError):
    """A file holds no estimator that can be loaded: damaged, crafted, or of another kind."""


class DatasetNotFoundError(FileNotFoundError):
    """A data set is neither on disk nor downloadable from here; says which file to put where."""
