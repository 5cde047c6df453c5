"""The hospital's own limits."""
