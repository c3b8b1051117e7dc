"""Looking closely at fitted ensembles: transfer between members, and displays."""

from ._displays._attack_comparison import AttackComparisonDisplay
from ._displays._decision_region import DecisionRegionDisplay
from ._displays._robustness_curve import RobustnessCurveDisplay
from ._displays._transferability_display import TransferabilityDisplay
from ._report._report import RobustnessReport
from ._report._robustness import robustness_report
from ._sanity import Finding
from ._transferability import TransferabilityMatrix, transferability_matrix

__all__ = [
    "AttackComparisonDisplay",
    "DecisionRegionDisplay",
    "Finding",
    "RobustnessCurveDisplay",
    "RobustnessReport",
    "TransferabilityDisplay",
    "TransferabilityMatrix",
    "robustness_report",
    "transferability_matrix",
]
