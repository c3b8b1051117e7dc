"""Inspection of fitted ensembles: robustness reports, transferability, and displays."""

from .displays.attack_comparison import AttackComparisonDisplay
from .displays.decision_region import DecisionRegionDisplay
from .displays.robustness_curve import RobustnessCurveDisplay
from .displays.transferability import TransferabilityDisplay
from .report import robustness_report
from .results import RobustnessReport
from .sanity import Finding
from .transferability import TransferabilityMatrix, transferability_matrix

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
