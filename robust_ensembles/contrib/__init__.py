"""Opt-in parts whose benefit has not been measured yet; imported by name only."""
