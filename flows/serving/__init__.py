"""Predictions of a released model, and its export as a bundle."""
