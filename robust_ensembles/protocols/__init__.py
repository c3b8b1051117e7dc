"""Each paper's evaluation to the letter, with sound numbers beside it.

A protocol takes one fitted estimator, or several by name, and returns a `ProtocolResult`: a table
with the numbers as the paper or its code computes them (``faithful``) and as they should be
(``sound``), the settings that repeat them, and the quirks that set the two apart.

>>> from robust_ensembles import protocols
>>> protocols.cldl_split()[0][:3].tolist()
[6311, 6890, 663]
"""

from ._result import ProtocolResult
from ._split import cldl_split
from ._surrogates import train_surrogates
from .ceat import ceat
from .cldl import cldl
from .ncen import ncen

__all__ = ["ProtocolResult", "ceat", "cldl", "cldl_split", "ncen", "train_surrogates"]
