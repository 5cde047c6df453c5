"""The libraries whose versions are told with whatever was made by them."""

from importlib.metadata import version

LIBRARIES = ("wardround", "torch", "monai", "opacus", "prefect", "mlflow")


def installed() -> dict[str, str]:
    """Return by name the version of each that this process has.

    >>> sorted(installed()) == sorted(LIBRARIES)
    True
    """
    return {name: version(name) for name in LIBRARIES}
