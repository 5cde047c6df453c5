"""Secure aggregation: the sum of hospitals' vectors, of which nobody reads a single one."""
