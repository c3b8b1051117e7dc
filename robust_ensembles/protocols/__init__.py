"""Evaluation protocols of the papers, exactly as published, with sound numbers beside them.

A protocol takes one fitted estimator, or several by name, and returns a `ProtocolResult`: a table
with the numbers as the paper or its code computes them (``faithful``) and as they should be
(``sound``), the settings to reproduce them, and the quirks that explain the differences.

>>> from robust_ensembles import protocols
>>> protocols.cldl_split()[0][:3].tolist()
[6311, 6890, 663]
"""

from .ceat import ceat
from .cldl import cldl, cldl_split
from .ncen import ncen
from .shared import ProtocolResult, train_surrogates

__all__ = ["ProtocolResult", "ceat", "cldl", "cldl_split", "ncen", "train_surrogates"]
