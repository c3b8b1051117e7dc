"""Opt-in parts that no measurement backs yet: imported by name only."""
