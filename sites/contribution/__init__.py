"""Contribution of a hospital to a run: its acceptance, its local update, its personal model."""
