"""Displays in the style of scikit-learn, one per file."""
