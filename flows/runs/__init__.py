"""A run as a folder: its records, where things lie, locks, versions, files that it shows."""
