"""Modules that are imported when something of them is first used.

For what a study needs to be read and checked, which takes a moment, beside what only computes with it,
which takes torch. (The idea of PEP 810, Explicit lazy imports, https://peps.python.org/pep-0810/.)
"""

from importlib import import_module
from types import ModuleType


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # questions about the module itself, as of doctest
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)


def lazy(name: str) -> ModuleType:
    """Return a stand-in for a module; the module is imported at the first use of anything in it.

    >>> import sys
    >>> this = lazy("wave")
    >>> "wave" in sys.modules, this.Error.__name__, "wave" in sys.modules
    (False, 'Error', True)
    """
    return _Lazy(name)
