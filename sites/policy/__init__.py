"""Policy of a hospital: its own limits, and its opening hours."""
