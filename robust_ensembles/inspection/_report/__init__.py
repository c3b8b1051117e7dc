"""The robustness report: what is measured, kept and written down."""
