"""The machinery of attacks: balls, margins, the ascent, and what is attacked."""
