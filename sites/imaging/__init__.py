"""Scans: files, formats, checks, preprocessing, cache."""
