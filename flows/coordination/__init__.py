"""The start of a training: on this machine, among remote hospitals, on a schedule."""
