"""Versions of the libraries that make rounds and models; records and models state them."""

from importlib.metadata import version

LIBRARIES = ("wardround", "torch", "monai", "opacus", "prefect", "mlflow")


def installed() -> dict[str, str]:
    """Return by name the version of each library that this process uses.

    >>> sorted(installed()) == sorted(LIBRARIES)
    True
    """
    return {name: version(name) for name in LIBRARIES}
