"""Checks that a run is what it claims to be."""
