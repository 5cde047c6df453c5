"""Noise: its source, its distribution, and figures and sums that carry it."""
