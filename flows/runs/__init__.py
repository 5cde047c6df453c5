"""A run as a folder: records, paths, locks, versions, signed artifacts."""
