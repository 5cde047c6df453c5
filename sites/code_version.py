"""Hash of the code that runs here: a hospital approves it, and an unfinished training depends on it."""

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from privacy.signing import canonical

ROOMS = ("flows", "sites", "privacy", "models")


@cache
def code_sha256() -> str:
    """Return the sha256 of every Python file of the four rooms, computed once per process."""
    root = Path(__file__).parent.parent
    files = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    lines = [[str(path.relative_to(root)), sha256(path.read_bytes()).hexdigest()] for path in files]
    return sha256(canonical(lines)).hexdigest()


def versions() -> tuple[str, ...]:
    """Return what gradients depend on: the hash of the code, and the libraries that compute them."""
    libraries = ("PyTorch", "torch"), ("MONAI", "monai"), ("Opacus", "opacus")
    return (code_sha256(), *(f"{name} {version(package)}" for name, package in libraries))
