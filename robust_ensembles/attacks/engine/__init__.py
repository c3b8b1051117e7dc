"""Shared parts of attacks: balls, margins, the ascent, and the attacked model."""
